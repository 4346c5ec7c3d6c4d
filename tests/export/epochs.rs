// Epochs, their order, numbers of the optimizer and a divided step, by the safe interface alone.
use net::{Each, Error, Net};
use std::sync::atomic::{AtomicUsize, Ordering};

const ROWS: usize = 70;
const WIDE: usize = 300;

fn data() -> (Vec<f32>, Vec<i32>) {
    let x = (0..ROWS * WIDE).map(|i| (i as f32).sin()).collect();
    (x, (0..ROWS as i32).map(|i| i % 10).collect())
}

fn main() {
    let (x, count) = data();
    let (mut whole, mut single) = (Net::new(3).unwrap(), Net::new(3).unwrap());
    let order = whole.shuffle(ROWS).unwrap();
    assert_eq!(order, single.shuffle(ROWS).unwrap());
    let mut sorted = order.clone();
    sorted.sort();
    assert!(sorted.iter().copied().eq(0..ROWS as u64));
    let losses = whole.steps(32, Some(&order), &x, &count).unwrap();
    let mut expected = Vec::new();
    for rows in order.chunks(32) {
        let rows: Vec<usize> = rows.iter().map(|&r| r as usize).collect();
        let some: Vec<f32> =
            rows.iter().flat_map(|&r| x[r * WIDE..(r + 1) * WIDE].to_vec()).collect();
        let labels: Vec<i32> = rows.iter().map(|&r| count[r]).collect();
        expected.push(single.step(rows.len(), &some, &labels).unwrap());
    }
    assert_eq!(losses, expected);
    assert_eq!(whole.save().unwrap(), single.save().unwrap());
    assert_eq!(whole.steps(64, None, &x, &count).unwrap().len(), 2);
    assert_ne!(whole.shuffle(ROWS).unwrap(), order);

    whole.set_learning_rate(0.5).unwrap();
    assert!(whole.set_learning_rate(-1.0).is_err() && whole.set_eps(f32::NAN).is_err());
    assert_eq!(whole.get("optimizer.learning_rate").unwrap(), 0.5f32.to_le_bytes());

    let before = whole.save().unwrap();
    assert_eq!(whole.shuffle(usize::MAX), Err(Error::Sizes));
    assert_eq!(whole.steps(65, None, &x, &count), Err(Error::Sizes));
    assert_eq!(whole.steps(0, None, &x, &count), Err(Error::Sizes));
    assert_eq!(whole.steps(9, None, &x[1..], &count), Err(Error::Length("x", 20999, 20700)));
    assert_eq!(whole.steps(9, None, &x, &count[1..]), Err(Error::Length("count", 69, 70)));
    assert_eq!(whole.steps(9, Some(&[1]), &x, &count), Err(Error::Length("order", 1, 70)));
    assert!(matches!(whole.steps(9, Some(&[70; ROWS]), &x, &count), Err(Error::Code(_))));
    assert_eq!(whole.save().unwrap(), before);
    let mut wrong = count.clone();
    wrong[40] = 10;
    let stopped = whole.steps(32, None, &x, &wrong).unwrap_err();
    assert!(matches!(stopped, Error::After(1, _)));
    assert!(stopped.to_string().starts_with("after 1 steps: count holds"));

    divided(&x, &count);
}

fn divided(x: &[f32], count: &[i32]) {
    let calls = AtomicUsize::new(0);
    let threads: Each = &|body, parts| {
        calls.fetch_add(1, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for part in 0..parts {
                scope.spawn(move || body(part));
            }
        })
    };
    let nothing: Each = &|_, _| ();
    let too_much: Each = &|body, parts| (-1..=2 * parts).rev().for_each(|part| body(part / 2));
    let (x, count) = (&x[..64 * WIDE], &count[..64]);
    let mut one = Net::new(5).unwrap();
    let first = one.step(64, x, count).unwrap();
    let epoch = one.steps(32, None, x, count).unwrap();
    for hook in [threads, nothing, too_much] {
        let mut net = Net::new(5).unwrap();
        assert_eq!(net.step_parallel(64, x, count, hook, 4), Ok(first));
        assert_eq!(net.steps_parallel(32, None, x, count, hook, 3), Ok(epoch.clone()));
        assert_eq!(net.save().unwrap(), one.save().unwrap());
        assert_eq!(net.loss_parallel(64, x, count, hook, 2), one.loss(64, x, count));
        assert_eq!(net.predict_parallel(64, x, hook, 4), one.predict(64, x));
        assert!(net.step_parallel(64, x, count, hook, 0).is_err());
        assert!(net.step_parallel(64, x, count, hook, 99).is_err());
    }
    assert!(calls.load(Ordering::Relaxed) > 0, "there is enough work to be divided");
    let mut net = Net::new(5).unwrap();
    std::panic::set_hook(Box::new(|_| ()));
    let panicking: Each = &|body, _| {
        body(1);
        panic!("as a test")
    };
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        net.step_parallel(64, x, count, panicking, 4)
    }));
    assert!(caught.is_err());
    net.steps(32, None, x, count).unwrap();
    assert_eq!(net.save().unwrap(), one.save().unwrap(), "the step was made whole");
}

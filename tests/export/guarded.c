/* Runs a kernel where no byte lies beside what it was given: every buffer has exactly the bytes that
   it must have, between pages that can't be touched, and so has the stack, which is painted before.
   Prints the most stack that a function took. HEADER, P, WIDTH, CLASSES, METRICS: as compiled.
   With SANITIZED, buffers are the allocator's, which looks after what lies beside them. */
#define _GNU_SOURCE
#include HEADER
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define F(name) JOIN(P, name)
enum { STACK = 1 << 16, PAINT = 0xA5, ROWS = 41 };

/* so many bytes, the last of them before a page that can't be touched, the first behind another */
static void *between(size_t bytes, int at_end) {
#ifdef SANITIZED
    void *exact = NULL;
    if (posix_memalign(&exact, at_end ? 64 : 4096, bytes)) exit(20);
    memset(exact, 0x5C, bytes);
    return exact;
#endif
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    unsigned char *all = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + page, room, PROT_READ | PROT_WRITE)) exit(20);
    memset(all + page, 0x5C, room);
    return all + page + (at_end ? room - bytes : 0);
}

#ifndef SANITIZED
static ucontext_t outer, inner;
#endif
static unsigned char *stack;
static size_t most;
static size_t n, batch;
static void *state, *work, *saved, *memory;
static float *x, *loss, *metric, *scores;
static int32_t *y, code;
static uint64_t *order;
static size_t room, done;

static void step(void) {
    code = F(_step)(state, n, work, room, batch, x, y, loss METRICS);
}
static void predict(void) { code = F(_predict)(state, n, work, room, batch, x, scores); }
static void loss_(void) { code = F(_loss)(state, n, work, room, batch, x, y, loss); }
static void init(void) { code = F(_init)(state, n, 3); }
static void save(void) { code = F(_save)(state, n, saved, n); }
static void load(void) { code = F(_load)(state, n, saved, n); }
static void shuffle(void) { code = F(_shuffle)(state, n, order, 2 * ROWS, ROWS); }
static void steps(void) {
    code = F(_steps)(state, n, work, room, ROWS, batch, order, x, y, loss, &done);
}
static void test(void) { code = F(_selftest)(memory, F(_selftest_bytes)()); }

/* a function on the painted stack, which begins at another multiple of 16 bytes each time */
static void on_stack(void (*function)(void), const char *name) {
#ifdef SANITIZED
    function();
#else
    static size_t turn;
    size_t given = STACK - turn++ % 4 * 16;
    memset(stack, PAINT, STACK);
    getcontext(&inner);
    inner.uc_stack.ss_sp = stack;
    inner.uc_stack.ss_size = given;
    inner.uc_link = &outer;
    makecontext(&inner, function, 0);
    swapcontext(&outer, &inner);
    size_t left = 0;
    while (left < STACK && stack[left] == PAINT) left++;
    if (given - left > most) most = given - left;
#endif
    if (code) {
        fprintf(stderr, "%s of %zu: %s\n", name, batch, F(_strerror)(code));
        exit(1);
    }
}

int main(void) {
    static const size_t sizes[] = {1, 2, 3, 5, 8, 13, 16, 17, 29, 32};
    n = F(_state_bytes)();
    stack = between(STACK, 0);
    for (int end = 0; end < 2; end++) {
        state = between(n, end), saved = between(n, end), metric = between(4, end);
        memory = between(F(_selftest_bytes)(), end);
        on_stack(test, "selftest");
        on_stack(init, "init");
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            batch = sizes[i];
            x = between(batch * WIDTH * 4, end), y = between(batch * 4, end);
            loss = between(4, end), scores = between(batch * CLASSES * 4, end);
            room = F(_workspace_bytes)(batch), work = between(room, end);
            for (size_t k = 0; k < batch * WIDTH; k++) x[k] = (float)((k * 37) % 101) / 101 - 0.5f;
            for (size_t k = 0; k < batch; k++) y[k] = (int32_t)(k % CLASSES);
            on_stack(step, "step");
            on_stack(predict, "predict");
            on_stack(loss_, "loss");
            room -= 64;
            code = F(_step)(state, n, work, room, batch, x, y, loss METRICS);
            if (code != 3) return 21; /* less than what is said is not enough */
        }
        x = between(ROWS * WIDTH * 4, end), y = between(ROWS * 4, end);
        order = between(2 * ROWS * 8, end), batch = 8, loss = between((ROWS + 7) / 8 * 4, end);
        room = F(_steps_workspace_bytes)(batch), work = between(room, end);
        for (size_t k = 0; k < ROWS * WIDTH; k++) x[k] = (float)((k * 37) % 101) / 101 - 0.5f;
        for (size_t k = 0; k < ROWS; k++) y[k] = (int32_t)(k % CLASSES);
        on_stack(shuffle, "shuffle");
        on_stack(steps, "steps");
        on_stack(save, "save");
        on_stack(load, "load");
    }
    printf("%zu\n", most);
    return 0;
}

/* One net trained by a kernel on one thread, and with its steps divided: one part after the other,
   in an order that changes, and on threads. Every run must leave the same bytes. Prints how many
   regions were divided. HEADER, P, WIDTH, CLASSES: as compiled. Buffers have their exact sizes. */
#define _GNU_SOURCE
#include HEADER
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define F(name) JOIN(P, name)
enum { ALIGN = 64, STEPS = 3, THREADS = 4, LOW = 9 };
typedef void (*Body)(void *, int32_t);
static size_t divided;

static void mixed(void *context, Body body, void *argument, int32_t parts) {
    int32_t by = 1 + *(int32_t *)context % parts; /* a step through all parts */
    while (by > 1 && (parts % by == 0 || by % 2 == 0)) by--;
    for (int32_t i = 0, part = 1 % parts; i < parts; i++, part = (part + by) % parts)
        body(argument, part);
    divided++;
    *(int32_t *)context += 1;
}

struct Job {
    Body body;
    void *argument;
    int32_t part;
};

static void *one(void *job) {
    struct Job *j = job;
    j->body(j->argument, j->part);
    return NULL;
}

static void threads(void *context, Body body, void *argument, int32_t parts) {
    pthread_t begun[THREADS];
    struct Job jobs[THREADS];
    if (context != &divided || parts > THREADS) exit(30);
    for (int32_t i = 0; i < parts; i++) {
        jobs[i] = (struct Job){body, argument, i};
        if (pthread_create(begun + i, NULL, one, jobs + i)) exit(31);
    }
    for (int32_t i = 0; i < parts; i++) pthread_join(begun[i], NULL);
    divided++;
}

static void *room(size_t bytes) {
    void *all = aligned_alloc(ALIGN, bytes); /* sizes here are multiples of it, or data's own */
    if (!all) exit(32);
    memset(all, 0x5C, bytes);
    return all;
}

static float random_number(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) / (1 << 23) - 1.0f;
}

static void check(int32_t code) {
    if (!code) return;
    fprintf(stderr, "%s\n", F(_strerror)(code));
    exit(33);
}

/* all that is left of some steps, a prediction and a loss, divided in such a way */
static unsigned char *trained(F(_parallel_for) hook, void *context, int32_t parts, size_t *bytes) {
    size_t n = F(_state_bytes)(), rows = LOW, steps_room = F(_steps_workspace_bytes)(BATCH);
    size_t work = F(_workspace_bytes)(BATCH), outputs = (rows * CLASSES + STEPS + 1) * sizeof(float);
    void *state = room(n), *workspace = room(work), *more = room(steps_room);
    float *x = malloc((size_t)BATCH * WIDTH * sizeof *x), losses[2 * STEPS];
    int32_t *y = malloc(BATCH * sizeof *y);
    unsigned char *found = malloc(n + outputs);
    uint32_t seed = 7;
    size_t done;
    if (!x || !y || !found) exit(34);
    for (size_t i = 0; i < (size_t)BATCH * WIDTH; i++) x[i] = random_number(&seed);
    for (size_t i = 0; i < BATCH; i++) y[i] = (int32_t)(i * 7 % CLASSES);
    check(F(_init)(state, n, 11));
    float *out = (float *)(void *)(found + n);
    for (size_t i = 0; i < STEPS; i++) {
        size_t batch = i == 1 ? BATCH - 3 : BATCH;
        check(F(_step_parallel)(state, n, workspace, work, batch, x, y, out + i, hook, context, parts));
    }
    check(F(_steps_parallel)(state, n, more, steps_room, BATCH, BATCH - 5, NULL, x, y, losses, &done,
                             hook, context, parts));
    if (done != 2) exit(35);
    check(F(_loss_parallel)(state, n, workspace, work, rows, x, y, out + STEPS, hook, context, parts));
    check(F(_predict_parallel)(state, n, workspace, work, rows, x, out + STEPS + 1, hook, context,
                               parts));
    if (F(_step_parallel)(state, n, workspace, work, rows, x, y, out, hook, context, 0) != 11 ||
        F(_step_parallel)(state, n, workspace, work, rows, x, y, out, hook, context, 1 << 20) != 11)
        exit(36); /* so many parts there are not */
    check(F(_save)(state, n, found, n));
    free(state), free(workspace), free(more), free(x), free(y);
    *bytes = n + outputs;
    return found;
}

int main(void) {
    size_t bytes;
    unsigned char *wanted = trained(NULL, NULL, 1, &bytes);
    for (int32_t parts = 1; parts <= MOST; parts++) {
        int32_t turn = parts;
        F(_parallel_for) hooks[] = {NULL, mixed, threads};
        for (size_t i = 0; i < 3; i++) {
            if (i == 2 && parts > THREADS) continue;
            void *context = i == 1 ? (void *)&turn : (void *)&divided;
            unsigned char *found = trained(hooks[i], context, parts, &bytes);
            if (memcmp(found, wanted, bytes)) {
                fprintf(stderr, "%d parts by hook %zu: other bytes\n", parts, i);
                return 1;
            }
            free(found);
        }
    }
    free(wanted);
    printf("%zu\n", divided);
    return 0;
}

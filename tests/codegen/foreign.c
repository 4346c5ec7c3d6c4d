/* Runs a step of machine code that Python could not load: reads memory, sizes and table from a file,
   starts the workers of a team as chainrule_runtime.pool does, runs, and writes the memory back.
   The offsets of the team's block come from the command line of the C compiler. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int32_t step(void **table, int64_t *sizes);
__attribute__((weak)) void work(void *team, int64_t number);
__attribute__((weak)) int64_t dismiss(void *team);

static char team[BOXES + BOX * 16] __attribute__((aligned(64)));

static void *worker(void *number) {
    work(team, (int64_t)(intptr_t)number);
    return NULL;
}

static void *take(FILE *file, size_t size) {
    char *block = aligned_alloc(64, (size / 64 + 2) * 64);
    if (!block || fread(block, 1, size, file) != size) exit(3);
    return block;
}

int main(int argc, char **argv) {
    FILE *file = fopen(argc > 1 ? argv[1] : "", "rb");
    if (!file) return 2;
    /* places, sizes without the record, the record, calls, stages, threads, bytes of memory */
    int64_t *head = take(file, 7 * 8);
    int64_t places = head[0], plain = head[1], record = head[2], threads = head[5];
    int64_t *offsets = take(file, places * 8);
    int64_t *sizes = take(file, (plain + record) * 8);
    char *worth = take(file, head[3]), *waits = take(file, head[4]), *memory = take(file, head[6]);
    fclose(file);
    void **table = calloc(places + 1, sizeof *table);
    for (int64_t i = 0; i < places; i++)
        if (offsets[i] >= 0) table[i] = memory + offsets[i];
    pthread_t hired[16];
    if (threads > 1) {
        *(int64_t *)(team + SPIN) = 20;
        *(int64_t *)(team + CLOCK) = (int64_t)(intptr_t)clock_gettime;
        *(int64_t *)(team + SYSCALL) = (int64_t)(intptr_t)syscall;
        for (int64_t n = 1; n < threads; n++) {
            if (pthread_create(&hired[n], NULL, worker, (void *)(intptr_t)n)) return 4;
            volatile int32_t *entered = (int32_t *)(team + BOXES + BOX * (n - 1) + ENTERED);
            while (!*entered) nanosleep(&(struct timespec){0, 1000000}, NULL);
            *(int64_t *)(team + WORKERS) = n;
        }
        sizes[plain] = (int64_t)(intptr_t)team;
        sizes[plain + 2] = (int64_t)(intptr_t)worth;
        sizes[plain + 3] = (int64_t)(intptr_t)waits;
    }
    int64_t answer[2] = {step(table, sizes), *(int64_t *)(team + JOBS)};
    if (threads > 1) {
        if (!dismiss(team)) return 5;
        for (int64_t n = 1; n < threads; n++) pthread_join(hired[n], NULL);
    }
    file = fopen(argv[1], "wb");
    if (!file || fwrite(answer, 8, 2, file) != 2) return 6;
    if (fwrite(memory, 1, head[6], file) != (size_t)head[6]) return 6;
    return fclose(file) ? 6 : 0;
}

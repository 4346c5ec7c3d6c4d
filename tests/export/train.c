/* Trains a kernel on data from a file and writes the state that came out, for another to compare.
   HEADER, P, the functions' prefix, and MORE, what follows the loss, come from the compiler's command
   line. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include HEADER

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define F(name) JOIN(P, name)

static void *block(size_t size) {
    void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!memory) exit(10);
    return memory;
}

int main(int argc, char **argv) {
    FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
    int32_t head[4]; /* steps, rows of a batch, numbers of a row, seed */
    if (!file || fread(head, 4, 4, file) != 4) return 2;
    size_t steps = head[0], batch = head[1], wide = head[2], n = F(_state_bytes)();
    float *x = block(steps * batch * wide * 4), loss = 0;
    int32_t *y = block(steps * batch * 4);
    if (fread(x, 4, steps * batch * wide, file) != steps * batch * wide) return 3;
    if (fread(y, 4, steps * batch, file) != steps * batch) return 3;
    fclose(file);
    size_t room = F(_workspace_bytes)(batch), own = F(_selftest_bytes)();
    void *state = block(n), *workspace = block(room), *bytes = block(n);
    if (F(_init)(state, n, (uint64_t)head[3])) return 4;
    for (size_t i = 0; i < steps; i++) {
        int32_t code = F(_step)(state, n, workspace, room, batch, x + i * batch * wide,
                                y + i * batch, &loss MORE);
        if (code) {
            fprintf(stderr, "step %zu: %s\n", i, F(_strerror)(code));
            return 5;
        }
    }
    if (F(_save)(state, n, bytes, n)) return 6;
    file = fopen(argv[2], "wb");
    if (!file || fwrite(bytes, 1, n, file) != n || fclose(file)) return 7;
    int32_t code = F(_selftest)(block(own), own);
    if (code) fprintf(stderr, "%s\n", F(_strerror)(code));
    return code ? 8 : 0;
}

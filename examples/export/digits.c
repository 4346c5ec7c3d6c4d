/* Trains a net on handwritten digits from a file, with nothing but the kernel: no library, no
   allocation. See digits.py for how to make the kernel and the file. */
#include "digits.h"

#include <stdio.h>

enum { ROWS = 2000, BATCH = 64, EPOCHS = 20 };

/* all memory there is */
static _Alignas(DIGITS_ALIGN) unsigned char state[DIGITS_STATE_BYTES];
static _Alignas(DIGITS_ALIGN) unsigned char workspace[1 << 20];
static float images[ROWS * 64], losses[ROWS], scores[BATCH * 10];
static int32_t labels[ROWS];
static uint64_t order[2 * ROWS];

static int failed(int32_t code) {
    if (code) fprintf(stderr, "%s\n", digits_strerror(code));
    return code != 0;
}

int main(int argc, char **argv) {
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    int32_t counts[2];
    if (!file || fread(counts, sizeof *counts, 2, file) != 2) return 2;
    size_t train = (size_t)counts[0], rows = train + (size_t)counts[1];
    if (rows > ROWS || digits_steps_workspace_bytes(BATCH) > sizeof workspace) return 2;
    if (fread(images, sizeof *images, rows * 64, file) != rows * 64) return 2;
    if (fread(labels, sizeof *labels, rows, file) != rows) return 2;
    fclose(file);

    if (failed(digits_init(state, sizeof state, 0))) return 1;
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        size_t done;
        if (failed(digits_shuffle(state, sizeof state, order, 2 * ROWS, train))) return 1;
        if (failed(digits_steps(state, sizeof state, workspace, sizeof workspace, train, BATCH, order,
                                images, labels, losses, &done)))
            return 1;
        if (epoch == 0) printf("loss %.3f at first\n", losses[0]);
        if (epoch == EPOCHS - 1) printf("loss %.3f after %d epochs\n", losses[done - 1], EPOCHS);
    }

    size_t right = 0;
    for (size_t row = train; row < rows; row += BATCH) {
        size_t count = rows - row < BATCH ? rows - row : BATCH;
        if (failed(digits_predict(state, sizeof state, workspace, sizeof workspace, count,
                                  images + row * 64, scores)))
            return 1;
        for (size_t i = 0; i < count; i++) {
            int best = 0;
            for (int digit = 1; digit < 10; digit++)
                if (scores[i * 10 + digit] > scores[i * 10 + best]) best = digit;
            right += best == labels[row + i];
        }
    }
    printf("%.1f %% of %zu images that it never saw are read right\n",
           100.0 * (double)right / (double)(rows - train), rows - train);
    return 0;
}

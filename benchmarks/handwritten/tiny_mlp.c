/* Training of a tiny perceptron as one would write it by hand: 4-16-3, tanh, softmax cross-entropy,
 * plain SGD, one minibatch of BATCH rows a step, of COUNT that are there. Sizes are constants, loops
 * are left to the compiler.
 */
#include <math.h>

enum { IN = 4, HIDDEN = 16, OUT = 3 };

void steps(float **w, const float *xs, const int *ys, long first, long count, float *losses)
{
    float *restrict W0 = w[0], *restrict b0 = w[1], *restrict W1 = w[2], *restrict b1 = w[3];
    for (long s = first; s < first + count; s++) {
        const float *x = xs + s % COUNT * BATCH * IN;
        const int *y = ys + s % COUNT * BATCH;
        float dW0[IN][HIDDEN] = {{0}}, db0[HIDDEN] = {0}, dW1[HIDDEN][OUT] = {{0}}, db1[OUT] = {0};
        float loss = 0;
        for (int r = 0; r < BATCH; r++) {
            float h[HIDDEN], dh[HIDDEN], z[OUT], dz[OUT];
            for (int j = 0; j < HIDDEN; j++)
                h[j] = b0[j];
            for (int i = 0; i < IN; i++)
                for (int j = 0; j < HIDDEN; j++)
                    h[j] += x[r * IN + i] * W0[i * HIDDEN + j];
            for (int j = 0; j < HIDDEN; j++)
                h[j] = tanhf(h[j]);
            for (int k = 0; k < OUT; k++)
                z[k] = b1[k];
            for (int j = 0; j < HIDDEN; j++)
                for (int k = 0; k < OUT; k++)
                    z[k] += h[j] * W1[j * OUT + k];
            float top = z[0], sum = 0;
            for (int k = 1; k < OUT; k++)
                top = z[k] > top ? z[k] : top;
            for (int k = 0; k < OUT; k++)
                sum += dz[k] = expf(z[k] - top);
            loss += logf(sum) + top - z[y[r]];
            for (int k = 0; k < OUT; k++)
                dz[k] = (dz[k] / sum - (k == y[r])) / BATCH;
            for (int j = 0; j < HIDDEN; j++) {
                dh[j] = 0;
                for (int k = 0; k < OUT; k++) {
                    dh[j] += dz[k] * W1[j * OUT + k];
                    dW1[j][k] += h[j] * dz[k];
                }
                dh[j] *= 1 - h[j] * h[j];
                db0[j] += dh[j];
            }
            for (int k = 0; k < OUT; k++)
                db1[k] += dz[k];
            for (int i = 0; i < IN; i++)
                for (int j = 0; j < HIDDEN; j++)
                    dW0[i][j] += x[r * IN + i] * dh[j];
        }
        losses[s - first] = loss / BATCH;
        for (int i = 0; i < IN * HIDDEN; i++)
            W0[i] -= RATE * (&dW0[0][0])[i];
        for (int j = 0; j < HIDDEN; j++)
            b0[j] -= RATE * db0[j];
        for (int j = 0; j < HIDDEN * OUT; j++)
            W1[j] -= RATE * (&dW1[0][0])[j];
        for (int k = 0; k < OUT; k++)
            b1[k] -= RATE * db1[k];
    }
}

/* Logistic regression as one would write it by hand: IN features, binary cross-entropy, plain SGD,
 * one minibatch of BATCH rows a step, of COUNT that are there. Sizes are constants, loops are left to
 * the compiler.
 */
#include <math.h>

enum { IN = 30 };

void steps(float **w, const float *xs, const float *ts, long first, long count, float *losses)
{
    float *restrict W = w[0], *restrict b = w[1];
    for (long s = first; s < first + count; s++) {
        const float *x = xs + s % COUNT * BATCH * IN, *t = ts + s % COUNT * BATCH;
        float dW[IN] = {0}, db = 0, loss = 0;
        for (int r = 0; r < BATCH; r++) {
            float z = b[0];
            for (int i = 0; i < IN; i++)
                z += x[r * IN + i] * W[i];
            float e = expf(-fabsf(z));
            loss += (z > 0 ? z : 0) - z * t[r] + log1pf(e);
            float dz = ((z >= 0 ? 1 : e) / (1 + e) - t[r]) / BATCH;
            db += dz;
            for (int i = 0; i < IN; i++)
                dW[i] += x[r * IN + i] * dz;
        }
        losses[s - first] = loss / BATCH;
        for (int i = 0; i < IN; i++)
            W[i] -= RATE * dW[i];
        b[0] -= RATE * db;
    }
}

/* Logistic regression as one would write it by hand: IN features, binary cross-entropy, plain SGD,
 * one minibatch of BATCH rows a step. Sizes are constants, loops are left to the compiler.
 */
#include <math.h>

enum { IN = 30, BATCH = 32 };

void train(int steps, float rate, const float *x, const float *t, float *restrict W,
           float *restrict b, float *losses)
{
    for (int s = 0; s < steps; s++, x += BATCH * IN, t += BATCH) {
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
        losses[s] = loss / BATCH;
        for (int i = 0; i < IN; i++)
            W[i] -= rate * dW[i];
        b[0] -= rate * db;
    }
}

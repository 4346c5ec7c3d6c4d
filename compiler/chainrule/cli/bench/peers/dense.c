/* A dense net's training step as written by hand: loops that a compiler can see through, as every
   size is a constant where these are inlined. */
#include <math.h>
#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#endif

enum { LINEAR, RELU, TANH };

INLINE void forward(int rows, int n, int m, int act, const float *x, const float *w, const float *b,
                    float *h) {
    for (int r = 0; r < rows; r++) {
        float *o = h + r * m;
        for (int j = 0; j < m; j++) o[j] = b[j];
        for (int k = 0; k < n; k++)
            for (int j = 0; j < m; j++) o[j] += x[r * n + k] * w[k * m + j];
        if (act == RELU) for (int j = 0; j < m; j++) o[j] = o[j] > 0 ? o[j] : 0;
        if (act == TANH) for (int j = 0; j < m; j++) o[j] = tanhf(o[j]);
    }
}

/* What d is to the operand x of a layer, through the activation that made it. */
INLINE void backward(int rows, int n, int m, int act, const float *x, const float *w,
                     const float *d, float *dx) {
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < n; k++) {
            float s = 0, v = x[r * n + k];
            for (int j = 0; j < m; j++) s += d[r * m + j] * w[k * m + j];
            dx[r * n + k] = act == RELU ? (v > 0 ? s : 0) : act == TANH ? s * (1 - v * v) : s;
        }
}

INLINE void slopes(int rows, int n, int m, const float *x, const float *d, float *gw, float *gb) {
    for (int i = 0; i < n * m; i++) gw[i] = 0;
    for (int j = 0; j < m; j++) gb[j] = 0;
    for (int r = 0; r < rows; r++) {
        for (int k = 0; k < n; k++)
            for (int j = 0; j < m; j++) gw[k * m + j] += x[r * n + k] * d[r * m + j];
        for (int j = 0; j < m; j++) gb[j] += d[r * m + j];
    }
}

INLINE float cross_entropy(int rows, int m, const float *z, const int *y, float *d) {
    float loss = 0;
    for (int r = 0; r < rows; r++) {
        const float *o = z + r * m;
        float top = o[0], sum = 0;
        for (int j = 1; j < m; j++) top = o[j] > top ? o[j] : top;
        for (int j = 0; j < m; j++) sum += d[r * m + j] = expf(o[j] - top);
        for (int j = 0; j < m; j++) d[r * m + j] /= sum * rows;
        d[r * m + y[r]] -= 1.0f / rows;
        loss += logf(sum) + top - o[y[r]];
    }
    return loss / rows;
}

INLINE float mean_square(int rows, int m, const float *z, const float *t, float *d) {
    float loss = 0;
    for (int i = 0; i < rows * m; i++) {
        float e = z[i] - t[i];
        loss += e * e;
        d[i] = 2 * e / (rows * m);
    }
    return loss / (rows * m);
}

INLINE float binary(int rows, int m, const float *z, const float *t, float *d) {
    float loss = 0;
    for (int r = 0; r < rows * m; r++) {
        float e = expf(-fabsf(z[r]));
        loss += (z[r] > 0 ? z[r] : 0) - z[r] * t[r] + log1pf(e);
        d[r] = ((z[r] > 0 ? 1 : e) / (1 + e) - t[r]) / rows;
    }
    return loss / rows;
}

INLINE void descend(int count, float rate, float *w, const float *g) {
    for (int i = 0; i < count; i++) w[i] -= rate * g[i];
}

/* Kingma and Ba, 2015, algorithm 1; `first` and `second` are the corrections of bias. */
INLINE void adam(int count, float rate, float b1, float b2, float eps, float first, float second,
                 float *w, const float *g, float *m, float *v) {
    for (int i = 0; i < count; i++) {
        m[i] = b1 * m[i] + (1 - b1) * g[i];
        v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
        w[i] -= rate * (m[i] / first) / (sqrtf(v[i] / second) + eps);
    }
}

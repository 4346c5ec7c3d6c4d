/* cuBLASLt over memory of this process: the functions that chainrule calls, written from "cuBLAS
 * Library", NVIDIA, chapter "Using the cuBLASLt API", and strict about all that they are given.
 * Sums are made in double, from the last term to the first: an order that is nobody else's. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_64F = 1, R_16BF = 14, COMPUTE_32F = 68, COMPUTE_64F = 70, FAST_TF32 = 77 };

typedef struct { int tag, compute, scale, turned[2]; } Desc;
typedef struct { int tag, type; uint64_t rows, cols; int64_t ld; int32_t count; int64_t step; } Layout;
typedef struct { int tag; uint64_t room; uint32_t aligned[4]; } Wishes;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algo; size_t room; int state; float waves; int reserved[4]; } Found;

enum { DESC = 101, LAYOUT, WISHES };
static int handle_tag = 100;

/* what a test may ask for: the function that fails, and how; an element that comes out wrong; that
 * nothing is known; how many things are alive; what memory there is */
char fails[64];
int fails_with, wrong, knows_nothing, alive, multiplied;
uint64_t last_stream;
int (*is_memory)(uint64_t at, uint64_t size);

#define FAIL(word) if (!strcmp(fails, word)) return fails_with

size_t cublasLtGetVersion(void) { return 120805; }

int cublasLtCreate(void **handle) {
  FAIL("cublasLtCreate");
  if (!handle) return INVALID_VALUE;
  *handle = &handle_tag;
  return SUCCESS;
}

int cublasLtMatmulDescCreate(void **made, int compute, int scale) {
  FAIL("cublasLtMatmulDescCreate");
  if (!made) return INVALID_VALUE;
  if (!((compute == COMPUTE_32F || compute == FAST_TF32) && scale == R_32F) &&
      !(compute == COMPUTE_64F && scale == R_64F))
    return INVALID_VALUE;
  Desc *d = calloc(1, sizeof *d);
  d->tag = DESC, d->compute = compute, d->scale = scale;
  alive++;
  *made = d;
  return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(void *desc, int word, const void *value, size_t size) {
  FAIL("cublasLtMatmulDescSetAttribute");
  Desc *d = desc;
  int32_t op;
  if (!d || d->tag != DESC || !value || (word != 3 && word != 4) || size != sizeof op)
    return INVALID_VALUE;
  memcpy(&op, value, size);
  if (op != 0 && op != 1) return INVALID_VALUE;
  d->turned[word - 3] = op;
  return SUCCESS;
}

int cublasLtMatmulDescDestroy(void *desc) {
  if (!desc || ((Desc *)desc)->tag != DESC) return INVALID_VALUE;
  ((Desc *)desc)->tag = 0;
  free(desc);
  alive--;
  return SUCCESS;
}

int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t cols, int64_t ld) {
  FAIL("cublasLtMatrixLayoutCreate");
  if (!made || (type != R_32F && type != R_64F && type != R_16BF)) return INVALID_VALUE;
  Layout *m = calloc(1, sizeof *m);
  m->tag = LAYOUT, m->type = type, m->rows = rows, m->cols = cols, m->ld = ld, m->count = 1;
  alive++;
  *made = m;
  return SUCCESS;
}

int cublasLtMatrixLayoutSetAttribute(void *layout, int word, const void *value, size_t size) {
  FAIL("cublasLtMatrixLayoutSetAttribute");
  Layout *m = layout;
  if (!m || m->tag != LAYOUT || !value) return INVALID_VALUE;
  if (word == 5 && size == sizeof m->count) memcpy(&m->count, value, size);
  else if (word == 6 && size == sizeof m->step) memcpy(&m->step, value, size);
  else return INVALID_VALUE;
  return SUCCESS;
}

int cublasLtMatrixLayoutDestroy(void *layout) {
  if (!layout || ((Layout *)layout)->tag != LAYOUT) return INVALID_VALUE;
  ((Layout *)layout)->tag = 0;
  free(layout);
  alive--;
  return SUCCESS;
}

int cublasLtMatmulPreferenceCreate(void **made) {
  FAIL("cublasLtMatmulPreferenceCreate");
  if (!made) return INVALID_VALUE;
  Wishes *w = calloc(1, sizeof *w);
  w->tag = WISHES;
  for (int i = 0; i < 4; i++) w->aligned[i] = 256;
  alive++;
  *made = w;
  return SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(void *wishes, int word, const void *value, size_t size) {
  FAIL("cublasLtMatmulPreferenceSetAttribute");
  Wishes *w = wishes;
  if (!w || w->tag != WISHES || !value) return INVALID_VALUE;
  if (word == 1 && size == sizeof w->room) memcpy(&w->room, value, size);
  else if (word >= 5 && word <= 8 && size == 4) memcpy(&w->aligned[word - 5], value, size);
  else return INVALID_VALUE;
  return SUCCESS;
}

int cublasLtMatmulPreferenceDestroy(void *wishes) {
  if (!wishes || ((Wishes *)wishes)->tag != WISHES) return INVALID_VALUE;
  ((Wishes *)wishes)->tag = 0;
  free(wishes);
  alive--;
  return SUCCESS;
}

/* whether the operands fit: op(A) is m x k, op(B) k x n, C and D m x n, by columns */
static int fits(const Desc *d, Layout *const m[4]) {
  if (!d || d->tag != DESC) return 0;
  for (int i = 0; i < 4; i++) {
    if (!m[i] || m[i]->tag != LAYOUT || m[i]->rows < 1 || m[i]->cols < 1) return 0;
    if (m[i]->ld < (int64_t)m[i]->rows || m[i]->count < 1 || m[i]->count != m[3]->count) return 0;
  }
  uint64_t rows[2], cols[2];
  for (int i = 0; i < 2; i++) {
    rows[i] = d->turned[i] ? m[i]->cols : m[i]->rows;
    cols[i] = d->turned[i] ? m[i]->rows : m[i]->cols;
  }
  if (rows[0] != m[3]->rows || cols[1] != m[3]->cols || cols[0] != rows[1]) return 0;
  if (m[2]->rows != m[3]->rows || m[2]->cols != m[3]->cols || m[2]->type != m[3]->type) return 0;
  if (m[0]->type != m[1]->type) return 0;
  if (d->compute == COMPUTE_64F) return m[0]->type == R_64F && m[3]->type == R_64F;
  if (m[3]->type != R_32F) return 0;
  return m[0]->type == R_32F || (m[0]->type == R_16BF && d->compute == COMPUTE_32F);
}

static uint64_t mark(const Desc *d, Layout *const m[4]) {
  uint64_t sum = d->compute * 4 + d->turned[0] * 2 + d->turned[1];
  for (int i = 0; i < 4; i++) {
    sum = sum * 1000003 + m[i]->type, sum = sum * 1000003 + m[i]->rows;
    sum = sum * 1000003 + m[i]->cols, sum = sum * 1000003 + (uint64_t)m[i]->ld;
    sum = sum * 1000003 + (uint64_t)m[i]->count, sum = sum * 1000003 + (uint64_t)m[i]->step;
  }
  return sum;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *desc, void *a, void *b, void *c, void *d,
                                   void *wishes, int requested, void *results, int *returned) {
  FAIL("cublasLtMatmulAlgoGetHeuristic");
  Layout *m[4] = {a, b, c, d};
  Wishes *w = wishes;
  Found *found = results;
  if (handle != &handle_tag) return NOT_INITIALIZED;
  if (!w || w->tag != WISHES || requested < 1 || !found || !returned || !fits(desc, m))
    return INVALID_VALUE;
  *returned = 0;
  if (knows_nothing) return NOT_SUPPORTED;
  memset(found, 0, sizeof *found);
  found->algo.data[0] = mark(desc, m);
  for (int i = 0; i < 4; i++) {
    if (w->aligned[i] & (w->aligned[i] - 1)) return INVALID_VALUE;
    found->algo.data[1 + i] = w->aligned[i];
  }
  found->room = found->algo.data[5] = w->room < 4096 ? 0 : 4096;
  found->waves = 1;
  *returned = 1;
  return SUCCESS;
}

static double element(const void *at, int type, int64_t i, int tf32) {
  if (type == R_64F) return ((const double *)at)[i];
  uint32_t bits;
  if (type == R_16BF) bits = (uint32_t)((const uint16_t *)at)[i] << 16;
  else bits = ((const uint32_t *)at)[i];
  if (tf32) bits = (bits + 0x1000) & ~0x1fffu; /* the nearest with 10 bits */
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static int lies(const Layout *m, uint64_t at) {
  uint64_t bytes = m->type == R_64F ? 8 : m->type == R_32F ? 4 : 2;
  uint64_t size = (uint64_t)(m->ld * (int64_t)(m->cols - 1)) + m->rows;
  for (int32_t g = 0; g < m->count; g++)
    if (!is_memory || !is_memory(at + (uint64_t)(g * m->step) * bytes, size * bytes)) return 0;
  return 1;
}

int cublasLtMatmul(void *handle, void *desc, const void *alpha, const void *a, void *layout_a,
                   const void *b, void *layout_b, const void *beta, const void *c, void *layout_c,
                   void *d, void *layout_d, const Algorithm *algo, void *workspace, size_t room,
                   void *stream) {
  FAIL("cublasLtMatmul");
  Layout *m[4] = {layout_a, layout_b, layout_c, layout_d};
  const void *at[4] = {a, b, c, d};
  const Desc *o = desc;
  if (handle != &handle_tag) return NOT_INITIALIZED;
  if (!alpha || !beta || !algo || !fits(desc, m) || algo->data[0] != mark(desc, m))
    return INVALID_VALUE;
  if (room < algo->data[5] || ((uint64_t)workspace & 255)) return INVALID_VALUE;
  if (room && (!is_memory || !is_memory((uint64_t)workspace, room))) return INVALID_VALUE;
  for (int i = 0; i < 4; i++)
    if ((uint64_t)at[i] % algo->data[1 + i] || !lies(m[i], (uint64_t)at[i])) return INVALID_VALUE;
  int wide = o->scale == R_64F, tf32 = o->compute == FAST_TF32;
  double by = wide ? *(const double *)alpha : *(const float *)alpha;
  double plus = wide ? *(const double *)beta : *(const float *)beta;
  if (plus != 0 && c != d) return NOT_SUPPORTED;
  uint64_t terms = o->turned[0] ? m[0]->rows : m[0]->cols;
  for (int32_t g = 0; g < m[3]->count; g++)
    for (uint64_t j = 0; j < m[3]->cols; j++)
      for (uint64_t i = 0; i < m[3]->rows; i++) {
        double sum = 0;
        for (uint64_t k = terms; k-- > 0;) {
          uint64_t x = o->turned[0] ? k + i * (uint64_t)m[0]->ld : i + k * (uint64_t)m[0]->ld;
          uint64_t y = o->turned[1] ? j + k * (uint64_t)m[1]->ld : k + j * (uint64_t)m[1]->ld;
          sum += element(a, m[0]->type, (int64_t)x + g * m[0]->step, tf32) *
                 element(b, m[1]->type, (int64_t)y + g * m[1]->step, tf32);
        }
        int64_t to = (int64_t)(i + j * (uint64_t)m[3]->ld) + g * m[3]->step;
        double old = plus != 0 ? element(c, m[2]->type, to, 0) : 0;
        double value = by * sum + (plus != 0 ? plus * old : 0);
        if (wrong && i == 0 && j == 0) value += 1;
        if (wide) ((double *)d)[to] = value;
        else ((float *)d)[to] = (float)value;
      }
  multiplied++;
  last_stream = (uint64_t)stream;
  return SUCCESS;
}

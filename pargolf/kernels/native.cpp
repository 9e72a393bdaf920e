// What training computes on CPUs in the place of PyTorch's operations, in bfloat16 and float32: causal attention
// with its gradient, and products of matrices that are known to be symmetric.
//
// The multiplies are PyTorch's own (oneDNN). In bfloat16 they take the second matrix with pairs of its
// rows interleaved, here called "paired": (rows / 2, columns, 2). In float32 it is as it is.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

namespace c10 {
struct BFloat16;
}
namespace at::native::cpublas {
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const c10::BFloat16* a, const c10::BFloat16* b, float* c, bool paired);
void brgemm(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldb, int64_t ldc, bool add,
            const float* a, const float* b, float* c, bool paired);
void brgemm_release(bool paired);
}  // namespace at::native::cpublas

namespace {

using bf16 = uint16_t;
// Rows of a block, chosen for two megabytes of cache a core.
constexpr int64_t kForwardQueries = 64, kQueries = 128, kKeys = 256;
constexpr int64_t kRows = 64, kDepth = 512;  // of a symmetric product
constexpr int64_t kStep = 32;                // T, and the side of a symmetric product, is a multiple of it
// Rows as long as T are laid further apart: at powers of two they would share the same few cache lines.
constexpr int64_t kPad = 32;

inline uint32_t bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float number(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline float widen(bf16 x) { return number(uint32_t(x) << 16); }
inline float widen(float x) { return x; }
template <typename E>
inline E narrow(float x) {
  if constexpr (std::is_same_v<E, float>) return x;
  else return (bits(x) + 0x8000) >> 16;
}

// e^x to the rounding of E; x <= 0. 2^whole goes into the exponent's bits, 2^part is a Taylor series.
template <typename E>
inline float exponential(float x) {
  const float y = x * 1.44269504f < -126.0f ? -126.0f : x * 1.44269504f;  // also of no number
  const float whole = std::nearbyint(y), part = y - whole;
  float p = 0.00961812911f;
  if constexpr (std::is_same_v<E, float>) p += part * (0.00133335581f + part * 0.000154035304f);
  p = p * part + 0.0555041087f;
  p = p * part + 0.240226507f;
  p = p * part + 0.693147181f;
  p = p * part + 1.0f;
  return number(bits(p) + (uint32_t(int32_t(whole)) << 23));
}

// Memory for `count` elements, from the start of a cache line: each row of a tile then lies in one line.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)), std::free) {}
  operator T*() { return data_.get(); }

 private:
  std::unique_ptr<T, decltype(&std::free)> data_;
};

// c (m, n) = a (m, k) times the paired b (k, n), added to c if `add`; ld: from row to row.
inline void multiply(int64_t m, int64_t n, int64_t k, const bf16* a, int64_t lda, const bf16* b, int64_t ldb,
                     float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, reinterpret_cast<const c10::BFloat16*>(a),
                              reinterpret_cast<const c10::BFloat16*>(b), c, true);
}
inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                     int64_t ldb, float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, false);
}

// 16 numbers of 32 bits, for which the compiler takes what registers there are
using Row = uint32_t __attribute__((vector_size(64)));

// Transpose 16 x 16 numbers: blocks of 1, 2, 4 and 8 change places across the diagonal.
inline void transpose16(Row (&x)[16]) {
#pragma GCC unroll 4
  for (int s = 1; s < 16; s *= 2) {
    Row low, high;
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
      low[j] = j & s ? 16 + j - s : j;
      high[j] = j & s ? 16 + j : j + s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
      if (!(i & s)) {
        const Row a = x[i], b = x[i + s];
        x[i] = __builtin_shuffle(a, b, low);
        x[i + s] = __builtin_shuffle(a, b, high);
      }
  }
}

// `put(c, r, row)` gets 16 numbers of the transpose of x (rows, cols), which begin at (c, r).
template <typename Put>
inline void transposed_rows(const void* x, int64_t stride, int64_t rows, int64_t cols, Put put) {
  Row tile[16];
  for (int64_t c = 0; c < cols; c += 16)
    for (int64_t r = 0; r < rows; r += 16) {
      for (int i = 0; i < 16; i++) std::memcpy(&tile[i], (const uint32_t*)x + (r + i) * stride + c, 64);
      transpose16(tile);
      for (int i = 0; i < 16; i++) put(c + i, r, tile[i]);
    }
}

template <typename E>
void transpose(const E* x, int64_t stride, int64_t rows, int64_t cols, E* out, int64_t ld) {
  int64_t whole = 0;
  if constexpr (sizeof(E) == 4) {
    whole = cols / 16 * 16;
    transposed_rows(x, stride, rows, whole,
                    [=](int64_t c, int64_t r, const Row& row) { std::memcpy(out + c * ld + r, &row, 64); });
  }
  for (int64_t r = 0; r < rows; r += kStep)
    for (int64_t c = whole; c < cols; c++)
      for (int64_t e = r; e < r + kStep; e++) out[c * ld + e] = x[e * stride + c];
}

// x (rows, cols), paired
void pair(const bf16* x, int64_t stride, int64_t rows, int64_t cols, bf16* out) {
  auto* o = reinterpret_cast<uint32_t*>(out);
  for (int64_t r = 0; r < rows; r += 2, o += cols)
    for (int64_t c = 0; c < cols; c++) o[c] = x[r * stride + c] | uint32_t(x[(r + 1) * stride + c]) << 16;
}
void pair(const float* x, int64_t stride, int64_t rows, int64_t cols, float* out) {
  for (int64_t r = 0; r < rows; r++) std::copy_n(x + r * stride, cols, out + r * cols);
}

// The transpose (cols, rows) of x, paired: a transpose of pairs; ld: from row to row of it, in pairs
void pair_transposed(const bf16* x, int64_t stride, int64_t rows, int64_t cols, bf16* out, int64_t ld) {
  transpose(reinterpret_cast<const uint32_t*>(x), stride / 2, rows, cols / 2, reinterpret_cast<uint32_t*>(out),
            ld);
}
void pair_transposed(const float* x, int64_t stride, int64_t rows, int64_t cols, float* out, int64_t ld) {
  transpose(x, stride, rows, cols, out, ld);
}

// Whether PyTorch's library multiplies here: its settings may forbid what the CPU can do, and an exception
// among the threads below would end the process.
template <typename E>
bool can_multiply() {
  E a[kStep * kStep] = {}, b[kStep * kStep] = {};
  float c[kStep * kStep];
  try {
    multiply(kStep, kStep, kStep, a, kStep, b, kStep, c, kStep, false);
    at::native::cpublas::brgemm_release(true);
    return true;
  } catch (...) {
    return false;
  }
}

// The first key to look at for a block of queries whose first is the token number `query`; a query sees no key
// before its start, which never falls from one to the next.
inline int64_t first_key(const int32_t* starts, int64_t query) {
  return starts ? starts[query] / kStep * kStep : 0;
}
// Elements of a column of what `pair_transposed` makes
template <typename E>
constexpr int64_t kPairs = std::is_same_v<E, float> ? 1 : 2;

// Causal attention: q (B, T, H, D), k and v (B, T, G, D) -> out (B, T, H, D) and, of the scores, which are
// products times `scale`, the logarithms of the sums of their exponentials (B, H, T). D is a multiple of 2; starts
// (B, T) may be null. The blocks are those of FlashAttention (arXiv 2205.14135 and 2307.08691), sized for the cache
// of a core: no weight of attention is kept, backward makes them again from the logarithms.
template <typename E>
void forward(const E* q, const E* k, const E* v, const int32_t* starts, E* out, float* log_sums, float scale,
             int64_t B, int64_t T, int64_t H, int64_t G, int64_t D) {
#pragma omp parallel
  {
    const int64_t ld = T + kPad;
    Scratch<E> keys(ld * D), values(T * D), weights(kForwardQueries * ld);
    Scratch<float> scores(kForwardQueries * ld), sums(kForwardQueries * D);
    float inverse[kForwardQueries];
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t b = 0; b < B; b++)
      for (int64_t g = 0; g < G; g++) {
        pair_transposed(k + (b * T * G + g) * D, G * D, T, D, +keys, ld);
        pair(v + (b * T * G + g) * D, G * D, T, D, +values);
        for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++)
          for (int64_t i = 0; i < T; i += kForwardQueries) {
            const int64_t m = std::min(kForwardQueries, T - i), low = first_key(starts, b * T + i);
            const int64_t n = i + m - low, at = ((b * T + i) * H + h) * D;
            multiply(m, n, D, q + at, H * D, keys + low * kPairs<E>, ld, scores, ld, false);
            for (int64_t r = 0; r < m; r++) {
              float* s = scores + r * ld;
              E* w = weights + r * ld;
              std::fill(s + i + r + 1 - low, s + n, -1e30f);  // not to be seen
              if (starts) std::fill(s, s + std::max<int64_t>(0, starts[b * T + i + r] - low), -1e30f);
              float top = s[0], total = 0;
#pragma omp simd reduction(max : top)
              for (int64_t j = 0; j < n; j++) top = s[j] > top ? s[j] : top;
#pragma omp simd reduction(+ : total)
              for (int64_t j = 0; j < n; j++) {
                const float e = exponential<E>((s[j] - top) * scale);
                total += e;
                w[j] = narrow<E>(e);
              }
              inverse[r] = 1 / total;
              log_sums[(b * H + h) * T + i + r] = top * scale + std::log(total);
            }
            multiply(m, D, n, +weights, ld, values + low * D, D, sums, D, false);
            for (int64_t r = 0; r < m; r++)
              for (int64_t c = 0; c < D; c++)
                out[at + r * H * D + c] = narrow<E>(sums[r * D + c] * inverse[r]);
          }
      }
    at::native::cpublas::brgemm_release(true);
  }
}

// The gradients of q, k and v from that of `out`. Scores lie transposed here, keys by queries: so two of
// the five multiplies find them as they need them, and the third after interleaving.
template <typename E>
void backward(const E* q, const E* k, const E* v, const int32_t* starts, const E* out, const float* log_sums,
              const E* d_out, E* d_q, E* d_k, E* d_v, float scale, int64_t B, int64_t T, int64_t H, int64_t G,
              int64_t D) {
#pragma omp parallel
  {
    Scratch<E> keys_t((T + kPad) * D), q_t(kQueries * D), q_pairs(kQueries * D), d_out_t(kQueries * D);
    Scratch<E> d_out_pairs(kQueries * D), weights(kKeys * kQueries), d_scores(kKeys * kQueries);
    Scratch<E> d_scores_pairs(kKeys * kQueries);
    Scratch<float> scores(kKeys * kQueries), d_weights(kKeys * kQueries), d_keys(T * D), d_values(T * D);
    Scratch<float> d_q_t(kQueries * D), dots(kQueries);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t b = 0; b < B; b++)
      for (int64_t g = 0; g < G; g++) {
        const int64_t group = (b * T * G + g) * D;
        transpose(k + group, G * D, T, D, +keys_t, T + kPad);
        std::fill_n(+d_keys, T * D, 0.0f);
        std::fill_n(+d_values, T * D, 0.0f);
        for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++)
          for (int64_t i = 0; i < T; i += kQueries) {
            const int64_t m = std::min(kQueries, T - i), at = ((b * T + i) * H + h) * D;
            const float* logs = log_sums + (b * H + h) * T + i;
            pair_transposed(q + at, H * D, m, D, +q_t, m);
            pair(q + at, H * D, m, D, +q_pairs);
            pair_transposed(d_out + at, H * D, m, D, +d_out_t, m);
            pair(d_out + at, H * D, m, D, +d_out_pairs);
            for (int64_t r = 0; r < m; r++) {
              float dot = 0;
#pragma omp simd reduction(+ : dot)
              for (int64_t c = 0; c < D; c++)
                dot += widen(out[at + r * H * D + c]) * widen(d_out[at + r * H * D + c]);
              dots[r] = dot;
            }
            const int64_t low = first_key(starts, b * T + i);
            int64_t open = 0;  // queries, from the first on, that see the key at hand
            for (int64_t j = low; j < i + m; j += kKeys) {
              const int64_t n = std::min(kKeys, i + m - j), from = group + j * G * D;
              multiply(n, m, D, k + from, G * D, +q_t, m, scores, m, false);
              multiply(n, m, D, v + from, G * D, +d_out_t, m, d_weights, m, false);
              for (int64_t r = 0; r < n; r++) {
                const int64_t first = j + r - i;  // query that sees key j + r
                while (open < m && (!starts || starts[b * T + i + open] <= j + r)) open++;
                const int64_t end = open;
                const float *s = scores + r * m, *d = d_weights + r * m;
                E *w = weights + r * m, *d_s = d_scores + r * m;
#pragma omp simd
                for (int64_t c = 0; c < m; c++) {
                  const float weight = c < first || c >= end ? 0.0f : exponential<E>(s[c] * scale - logs[c]);
                  w[c] = narrow<E>(weight);
                  d_s[c] = narrow<E>(weight * (d[c] - dots[c]) * scale);
                }
              }
              pair(+d_scores, m, n, m, +d_scores_pairs);
              multiply(n, D, m, +weights, m, +d_out_pairs, D, d_values + j * D, D, true);
              multiply(n, D, m, +d_scores, m, +q_pairs, D, d_keys + j * D, D, true);
              multiply(D, m, n, keys_t + j, T + kPad, +d_scores_pairs, m, d_q_t, m, j > low);
            }
            for (int64_t r = 0; r < m; r++)
              for (int64_t c = 0; c < D; c++) d_q[at + r * H * D + c] = narrow<E>(d_q_t[c * m + r]);
          }
        for (int64_t t = 0; t < T; t++)
          for (int64_t c = 0; c < D; c++) {
            d_k[group + t * G * D + c] = narrow<E>(d_keys[t * D + c]);
            d_v[group + t * G * D + c] = narrow<E>(d_values[t * D + c]);
          }
      }
    at::native::cpublas::brgemm_release(true);
  }
}

// out (n, M, M) = alpha a b^T + beta c, for a and b (n, M, K) whose product is symmetric: its lower half is
// computed, and mirrored. c (n, M, M) may be null, pairs is memory of the size of b; K is a multiple of 2.
template <typename E>
void symmetric(const E* a, const E* b, const E* c, E* pairs, E* out, float alpha, float beta, int64_t n, int64_t M,
               int64_t K) {
#pragma omp parallel
  {
    const int64_t ld = M + kPad;
    Scratch<float> sums(kRows * ld);
#pragma omp for schedule(dynamic)
    for (int64_t x = 0; x < n; x++) pair_transposed(b + x * M * K, K, M, K, pairs + x * K * M, M);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t x = 0; x < n; x++)
      for (int64_t i = 0; i < M; i += kRows) {
        const int64_t m = std::min(kRows, M - i), end = i + m;
        for (int64_t k = 0; k < K; k += kDepth)
          multiply(m, end, std::min(kDepth, K - k), a + (x * M + i) * K + k, K, pairs + (x * K + k) * M, M, sums,
                   ld, k > 0);
        E* lower = out + (x * M + i) * M;
        for (int64_t r = 0; r < m; r++) {
          float* s = sums + r * ld;
          const E* added = c ? c + (x * M + i + r) * M : nullptr;
          for (int64_t j = 0; j < end; j++) s[j] = alpha * s[j] + (added ? beta * widen(added[j]) : 0);
          for (int64_t j = 0; j < end; j++) lower[r * M + j] = narrow<E>(s[j]);
        }
        E* upper = out + x * M * M + i;
        transposed_rows(sums, ld, m, i, [=](int64_t j, int64_t r, const Row& row) {
          float s[16];
          std::memcpy(s, &row, 64);
          for (int e = 0; e < 16; e++) upper[j * M + r + e] = narrow<E>(s[e]);
        });
      }
    at::native::cpublas::brgemm_release(true);
  }
}

}  // namespace

// What Python calls, for each type of element
#define FUNCTIONS(E)                                                                                       \
  extern "C" int can_multiply_##E() { return can_multiply<E>(); }                                          \
  extern "C" void forward_##E(const E* q, const E* k, const E* v, const int32_t* starts, E* out,           \
                              float* log_sums, float scale, int64_t B, int64_t T, int64_t H, int64_t G,    \
                              int64_t D) {                                                                 \
    forward(q, k, v, starts, out, log_sums, scale, B, T, H, G, D);                                         \
  }                                                                                                        \
  extern "C" void backward_##E(const E* q, const E* k, const E* v, const int32_t* starts, const E* out,    \
                               const float* log_sums, const E* d_out, E* d_q, E* d_k, E* d_v, float scale, \
                               int64_t B, int64_t T, int64_t H, int64_t G, int64_t D) {                    \
    backward(q, k, v, starts, out, log_sums, d_out, d_q, d_k, d_v, scale, B, T, H, G, D);                  \
  }                                                                                                        \
  extern "C" void symmetric_##E(const E* a, const E* b, const E* c, E* pairs, E* out, float alpha,         \
                                float beta, int64_t n, int64_t M, int64_t K) {                             \
    symmetric(a, b, c, pairs, out, alpha, beta, n, M, K);                                                  \
  }
FUNCTIONS(bf16)
FUNCTIONS(float)

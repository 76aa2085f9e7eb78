// Passes over a row of n logits: what its pieces, its stretches and its moments amount to, argmax, the
// watermark, the noisy pick.
#include "kernels.h"
#include "noise.h"
#include "rowwise.h"
#include "vmath.h"

namespace ridgeline::RL_ISA {

RL_INLINE float largest_of(const float* x, int64_t n) {
  f32x16 top = splat(-__builtin_inff());
  int64_t c = 0;
  for (; c + LANES <= n; c += LANES) top = maximum(load(x + c), top);
  float best = largest(top);
  for (; c < n; c++) best = x[c] > best ? x[c] : best;
  return best;
}

// The first index of the largest value; 0 if there is none above -inf.
int64_t argmax(const float* x, int64_t n) {
  const float best = largest_of(x, n);
  if (best == -__builtin_inff()) return 0;
  for (int64_t i = 0; i < n; i++)
    if (x[i] == best) return i;
  return 0;
}

void weigh_pieces(const float* x, int64_t n, Span which, Piece* out) {
  for (int64_t p = which.begin; p < which.end; p++) {
    const float* at = x + p * PIECE;
    const int64_t count = n - p * PIECE < PIECE ? n - p * PIECE : PIECE;
    const float top = largest_of(at, count), base = top < -__FLT_MAX__ ? -__FLT_MAX__ : top;
    f32x16 mass = {};
    for_vectors(count, [&](int64_t c, int64_t left) {
      const f32x16 e = exp(read(at + c, left) - base);
      mass += select(lane_index() < (int32_t)left, e, f32x16{});
    });
    out[p] = {top, sum(mass)};
  }
}

void find_tops(const float* x, int64_t n, float* tops) {
  for (int64_t i = 0; i < n; i += STRETCH) *tops++ = largest_of(x + i, n - i < STRETCH ? n - i : STRETCH);
}

Moments moments(const float* x, int64_t n, float top) {
  Moments m{};
  for (int64_t p = 0; p < n; p += PIECE) {
    f32x16 mass = {}, first = {};
    for_vectors(n - p < PIECE ? n - p : PIECE, [&](int64_t c, int64_t left) {
      const f32x16 d = maximum(splat(-110.0f), read(x + p + c, left) - top);  // finite, and exp of it still 0
      const f32x16 e = select(lane_index() < (int32_t)left, exp(d), f32x16{});
      mass += e;
      first += e * d;
    });
    m.mass += sum(mass);
    m.first += sum(first);
  }
  return m;
}

// Adds delta to the logits of the tokens that are green under the seed.
void favour_green(float* x, int64_t n, uint64_t seed, uint32_t below, float delta) {
  for_vectors(n, [&](int64_t c, int64_t left) {
    const u32x16 hash = colour(seed, as_u32(lane_index()) + (uint32_t)c);
    const f32x16 v = read(x + c, left);
    write(x + c, select(hash < below, v + delta, v), left);
  });
}

// Argmax of x - log(noise), for logits of which x[top] is the largest. A token whose noise cannot
// lift it above the best so far is passed over without a logarithm: noise = -log1p(-u) >= u, so u
// must be below exp(x - best).
int64_t pick_noisy(const float* x, int64_t n, int64_t top, uint64_t key) {
  double best = noisy(x[top], key, top);
  int64_t picked = top;
  for (int64_t c = 0; c < n; c += LANES) {
    const int64_t left = n - c < LANES ? n - c : LANES;
    float bound[LANES];
    store(bound, exp(read(x + c, left) - (float)best) * 1.001f);  // slack for the float roundings
    for (int64_t i = 0; i < left; i++) {
      if (c + i == top || x[c + i] == -__builtin_inff() || uniform(key, c + i) > (double)bound[i]) continue;
      const double score = noisy(x[c + i], key, c + i);
      if (score > best || (score == best && c + i < picked)) {
        best = score;
        picked = c + i;
      }
    }
  }
  return picked;
}

}  // namespace ridgeline::RL_ISA

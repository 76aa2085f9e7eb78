#include "sample.h"

#include <string.h>

#include <algorithm>
#include <limits>

#include "noise.h"

namespace ridgeline {
namespace {

constexpr uint64_t PURPOSE_PICK = 1;
constexpr float INF = std::numeric_limits<float>::infinity(), NONE = -INF;

uint64_t noise_key(const Sampler& s) {
  uint64_t key = mix(s.seed + GOLDEN);
  const uint64_t parts[] = {(uint64_t)(int64_t)s.choice, (uint64_t)(int64_t)s.position, PURPOSE_PICK};
  for (uint64_t part : parts) key = mix(key + (part + 1) * GOLDEN);
  return key;
}

void penalise(float* x, const Sampler& s, const SampleLists& lists) {
  for (int64_t i = s.history_start; i < s.history_stop; i++) {
    float& logit = x[lists.history_ids[i]];
    const int32_t prompt = lists.history_prompt[i], output = lists.history_output[i];
    if (output > 0 || (prompt > 0 && (s.flags & REPEAT_PROMPT)))
      logit = logit > 0 ? logit / s.repetition : logit * s.repetition;
    const int32_t count = output + (s.flags & COUNT_PROMPT ? prompt : 0);
    logit -= s.frequency * (float)count + s.presence * (float)(count > 0);
  }
}

// Bias, penalties, grammar mask.
void process(float* x, int64_t n, const Sampler& s, const SampleLists& lists) {
  for (int64_t i = s.bias_start; i < s.bias_stop; i++) x[lists.bias_ids[i]] += lists.bias_values[i];
  penalise(x, s, lists);
  if (s.mask_row < 0) return;
  const uint32_t* mask = lists.masks + s.mask_row * lists.mask_words;
  for (int64_t i = 0; i < n; i++)
    if (!(mask[i / 32] >> (i % 32) & 1)) x[i] = NONE;
}

// A row of logits as its pieces make it up. The mass is NaN if a logit is, or infinities leave none to
// compare.
struct Weighed {
  int64_t likeliest;
  float top;
  double mass;  // sum of exp(x - top)
};

Weighed merge(const float* x, int64_t n, const Piece* pieces) {
  Weighed w{0, NONE, 0};
  int64_t where = 0;
  for (int64_t p = 0; p < pieces_of(n); p++)
    if (pieces[p].top > w.top) {
      w.top = pieces[p].top;
      where = p;
    }
  for (int64_t i = where * PIECE; i < n && w.top > NONE; i++)
    if (x[i] == w.top) {
      w.likeliest = i;
      break;
    }
  for (int64_t p = 0; p < pieces_of(n); p++)
    w.mass += (double)pieces[p].mass * exp((double)pieces[p].top - (double)w.top);
  return w;
}

struct Order {  // descending by value, then ascending by id
  const float* x;
  bool operator()(int32_t a, int32_t b) const { return x[a] > x[b] || (x[a] == x[b] && a < b); }
};

struct Typicality {  // ascending by distance from the expected logit, then by id
  const float* x;
  float top;
  double mean;  // expected x - top
  double away(int64_t i) const { return fabs((double)(x[i] - top) - mean); }
  bool operator()(int32_t a, int32_t b) const {
    const double u = away(a), v = away(b);
    return u < v || (u == v && a < b);
  }
};

int64_t count_above(const float* x, int64_t n, float floor) {
  int32_t count = 0;  // as wide as what is compared, for the vectoriser
  for (int64_t i = 0; i < n; i++) count += x[i] > floor;
  return count;
}

// Scratch of one row: logits on their way to a pick, candidate ids, pieces, the largest of each stretch.
struct Scratch {
  float* x;
  int32_t* ids;
  Piece* pieces;
  float* tops;
};

Scratch cut(uint8_t* scratch, int64_t n) {
  const int64_t part = (n + 15) / 16 * 64;
  Piece* pieces = (Piece*)(scratch + 2 * part);
  return {(float*)scratch, (int32_t*)(scratch + part), pieces, (float*)(pieces + pieces_of(n))};
}

// A value with at least k logits above it, or -inf. A stretch has one if its top is: where there are k
// stretches, these tell.
float floor_of_top_k(const Scratch& at, int64_t n, float top, int64_t k) {
  const bool told = k <= stretches_of(n);
  const float* values = told ? at.tops : at.x;
  const int64_t count = told ? stretches_of(n) : n;
  for (float depth = 1; depth < 1000; depth *= told ? 1.25f : 2)
    if (count_above(values, count, top - depth) >= k) return top - depth;
  return NONE;
}

// The largest value below all those of at least top + depth, also where rounding eats the depth.
float below(float top, double depth) {
  return nextafterf((float)((double)top + depth), NONE);
}

// A value below which nothing can be in the nucleus: tokens of less than (1 - p) / n of the mass are
// all in its tail.
float floor_of_top_p(double mass, int64_t n, float top, float p) {
  const double least = (1 - (double)p) * mass / (double)n;
  return least > 0 ? below(top, log(least) - 0.001) : NONE;  // slack for the roundings of the mass
}

// Ids above a floor, put in order only as far as asked for: the work follows the size of what survives.
template <class Order>
class Ranking {
 public:
  // The tops of stretches are those of `at.x` as it is.
  Ranking(Order order, const Scratch& at, int64_t n, float floor) : order_(order), ids_(at.ids) {
    for (int64_t s = 0; s < stretches_of(n); s++) {
      if (!(at.tops[s] > floor)) continue;  // most have none
      const int64_t end = std::min(n, (s + 1) * STRETCH);
      for (int64_t i = s * STRETCH; i < end; i++)
        if (at.x[i] > floor) ids_[count_++] = (int32_t)i;
    }
  }

  int64_t size() const { return count_; }

  // Puts the first k, or all there are, in front in any order; how many these are. Before any `at`.
  int64_t choose(int64_t k) {
    if (k >= count_) return count_;
    std::nth_element(ids_, ids_ + k, ids_ + count_, order_);
    return k;
  }

  // The id of the given rank; ranks are asked for in ascending order.
  int32_t at(int64_t rank) {
    while (rank >= sorted_) {
      const int64_t next = std::min(count_, std::max<int64_t>(64, sorted_ * 4));
      if (next < count_) std::nth_element(ids_ + sorted_, ids_ + next, ids_ + count_, order_);
      std::sort(ids_ + sorted_, ids_ + next, order_);
      sorted_ = next;
    }
    return ids_[rank];
  }

 private:
  Order order_;
  int32_t* ids_;
  int64_t count_ = 0, sorted_ = 0;
};

// Drops (sets to -inf) what top-k, then top-p, then min-p cut from scaled logits.
void cut_unlikely(const Kernels& kernels, const Weighed& w, const Scratch& at, int64_t n, const Sampler& s) {
  const float top = w.top;
  float* x = at.x;
  const bool cut_k = s.top_k > 0 && s.top_k < n, cut_p = s.top_p < 1;
  if (!cut_k && !cut_p && s.min_p <= 0) return;
  const float least = s.min_p > 0 ? top + std::min(0.0f, (float)log((double)s.min_p)) : NONE;
  if (!cut_k && !cut_p) {
    for (int64_t i = 0; i < n; i++) x[i] = x[i] >= least ? x[i] : NONE;
    return;
  }
  double mass = cut_k ? 0 : w.mass;
  kernels.find_tops(x, n, at.tops);
  const float floor = cut_k ? floor_of_top_k(at, n, top, s.top_k) : floor_of_top_p(mass, n, top, s.top_p);
  Ranking<Order> ranking({x}, at, n, floor);
  const int64_t count = cut_k ? std::min<int64_t>(s.top_k, ranking.size()) : ranking.size();
  if (count == 0) return;
  for (int64_t i = 0; cut_k && cut_p && i < count; i++) mass += exp((double)(x[ranking.at(i)] - top));
  int64_t kept = 0;
  for (double before = 0; kept < count && (!cut_p || kept == 0 || before < (double)s.top_p * mass); kept++) {
    const float value = x[ranking.at(kept)];
    if (kept > 0 && value < least) break;
    before += exp((double)(value - top));
  }
  const int32_t last = ranking.at(kept - 1);
  const float edge = x[last];
  for (int64_t i = 0; i < n; i++)
    if (x[i] < edge || (x[i] == edge && i > last)) x[i] = NONE;
}

// Drops all but the tokens nearest to the expected logit that together have p of the mass.
void cut_untypical(const Kernels& kernels, float top, const Scratch& at, int64_t n, float p) {
  float* x = at.x;
  const Moments m = kernels.moments(x, n, top);
  const Typicality order{x, top, m.first / m.mass};
  // What is further below the mean than the top is above it comes last, the likelier the earlier: of that,
  // the tail of less than 1 - p is never reached.
  const float floor = std::min(floor_of_top_p(m.mass, n, top, p), below(top, 2 * order.mean - 0.001));
  kernels.find_tops(x, n, at.tops);
  Ranking<Typicality> ranking(order, at, n, floor);
  int64_t last = 0;
  for (double seen = 0; last < ranking.size() - 1; last++) {
    seen += exp((double)(x[ranking.at(last)] - top));
    if (seen >= (double)p * m.mass) break;
  }
  const double edge = order.away(ranking.at(last));
  for (int64_t i = 0; i < n; i++)
    if (order.away(i) > edge) x[i] = NONE;
}

// A key of the scheme's own, so that a text which one scheme marks is unmarked for the others.
uint64_t green_key(const Sampler& s) {
  return mix(mix(s.green_key + GOLDEN) + ((uint64_t)s.green_scheme + 1) * GOLDEN);
}

// The seed of a token's list where it hangs on the token itself.
uint64_t own_seed(uint64_t key, const uint64_t (&past)[3], int64_t id) {
  uint64_t least = mix_with(mix_with(key, id), id);
  for (uint64_t hash : past) least = std::min(least, mix_with(hash, id));
  return least;
}

// Adds to the green tokens among the likeliest, or to all.
void mark(const Kernels& kernels, const Scratch& at, int64_t n, const Sampler& s) {
  static const int64_t WIDTHS[] = {1, 4, 3};
  const int64_t width = WIDTHS[s.green_scheme];
  const uint64_t key = green_key(s);
  uint64_t past[4], least = UINT64_MAX;
  for (int64_t i = 0; i < width; i++) {
    if (s.green_past[i] < 0) return;
    past[i] = mix_with(key, s.green_past[i]);
    least = std::min(least, past[i]);
  }
  const bool own = s.green_scheme == SELF_HASH;
  if (!own && s.green_top <= 0) return kernels.favour_green(at.x, n, least, s.green_below, s.green_delta);
  const int64_t top = s.green_top > 0 ? std::min<int64_t>(s.green_top, n) : n;
  kernels.find_tops(at.x, n, at.tops);
  const float most = at.tops[kernels.argmax(at.tops, stretches_of(n))];
  Ranking<Order> ranking({at.x}, at, n, floor_of_top_k(at, n, most, top));
  const int64_t count = ranking.choose(top);
  for (int64_t i = 0; i < count; i++) {
    const int32_t id = at.ids[i];
    const uint64_t seed = own ? own_seed(key, {past[0], past[1], past[2]}, id) : least;
    if (colour(seed, (uint32_t)id) < s.green_below) at.x[id] += s.green_delta;
  }
}

// All cuts, in order. An infinite logit leaves nothing to compare.
void truncate(const Kernels& kernels, const Weighed& w, const Scratch& at, int64_t n, const Sampler& s) {
  if (w.top == NONE || w.top == INF) return;
  cut_unlikely(kernels, w, at, n, s);
  if (s.typical_p < 1) cut_untypical(kernels, w.top, at, n, s.typical_p);
}

bool has_nan(const float* x, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) count += x[i] != x[i];
  return count > 0;
}

Weighed weigh(const Kernels& kernels, const Scratch& s, int64_t n) {
  kernels.weigh_pieces(s.x, n, {0, pieces_of(n)}, s.pieces);
  return merge(s.x, n, s.pieces);
}

// A token of processed logits, or -1 where none may be sampled.
int32_t pick(const Kernels& kernels, const Scratch& at, int64_t n, const Sampler& s) {
  const int64_t likeliest = kernels.argmax(at.x, n);
  if (!(at.x[likeliest] > NONE) || has_nan(at.x, n)) return -1;
  if (s.temperature <= 0) return (int32_t)likeliest;
  for (int64_t i = 0; i < n; i++) at.x[i] /= s.temperature;
  if (s.top_k > 0 || s.top_p < 1 || s.min_p > 0 || s.typical_p < 1)
    truncate(kernels, weigh(kernels, at, n), at, n, s);
  return (int32_t)kernels.pick_noisy(at.x, n, kernels.argmax(at.x, n), noise_key(s));
}

// ids[0..k) = the ids of the k largest values in Order; k is small.
void largest_ids(const float* x, int64_t n, const Piece* pieces, int64_t k, int32_t* ids) {
  int64_t found = 0;
  for (int64_t i = 0; i < n && k > 0; i++) {
    if (found == k && i % PIECE == 0 && !(pieces[i / PIECE].top > x[ids[k - 1]])) {
      i += PIECE - 1;
      continue;
    }
    if (found == k && !(x[i] > x[ids[k - 1]])) continue;
    int64_t at = found < k ? found++ : k - 1;
    for (; at > 0 && x[i] > x[ids[at - 1]]; at--) ids[at] = ids[at - 1];
    ids[at] = (int32_t)i;
  }
}

}  // namespace

Sampled sample(const Kernels& kernels, const float* logits, const Piece* pieces, int64_t n, const Sampler& s,
               const SampleLists& lists, uint8_t* scratch, int32_t* top_ids, float* top_logprobs) {
  const bool given = s.target >= 0 && !(s.flags & PROCESSED);  // nothing is asked of processed logits
  const bool plain = given || (s.temperature <= 0 && s.mask_row < 0 && s.bias_start == s.bias_stop &&
                               s.history_start == s.history_stop && s.green_below == 0);
  const Scratch at = cut(scratch, n);
  int32_t id = s.target;
  if (!plain) {
    memcpy(at.x, logits, (size_t)n * sizeof(float));
    process(at.x, n, s, lists);
    if (s.green_below > 0) mark(kernels, at, n, s);
    if (s.target < 0) id = pick(kernels, at, n, s);
  }
  const bool processed = s.flags & PROCESSED && !plain;
  const Weighed w = processed ? weigh(kernels, at, n) : merge(logits, n, pieces);
  const float *scores = processed ? at.x : logits, normaliser = (float)log(w.mass);
  const bool proper = normaliser == normaliser;  // no NaN, nor infinities that leave none to compare
  if (plain && s.target < 0) id = w.top > NONE && (proper || !has_nan(logits, n)) ? (int32_t)w.likeliest : -1;
  std::fill(top_ids, top_ids + MAX_TOP, -1);
  std::fill(top_logprobs, top_logprobs + MAX_TOP, NONE);
  if (!proper) return {id, NONE};
  largest_ids(scores, n, processed ? at.pieces : pieces, s.n_top, top_ids);
  for (int64_t i = 0; i < s.n_top && top_ids[i] >= 0; i++)
    top_logprobs[i] = scores[top_ids[i]] - w.top - normaliser;
  return {id, id < 0 ? NONE : scores[id] - w.top - normaliser};
}

}  // namespace ridgeline

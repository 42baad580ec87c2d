// What the forward and backward attention kernels share: which rows take part, how rows enter
// blocks, dropout, scratch memory. Valid rows are listed once a batch entry and blocks are cut from
// the lists, so padded rows cost nothing, are never read (NaN included) and change no sum; of the
// listed keys, a query then sees a prefix. T queries, S keys, d head dimension.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "macgrad/core/cpu/arena.h"
#include "macgrad/core/cpu/attention_tile.h"
#include "macgrad/core/cpu/parallel.h"
#include "macgrad/core/kernels/attention.h"

namespace macgrad::cpu::attention {

/// One head of a (B, H, N, width) operand.
template <class T>
struct Head {
  T* data;
  int64_t stride;  // between rows
  T* row(int64_t i) const { return data + i * stride; }
  /// i -> row list[i].
  auto rows(const int32_t* list) const {
    return [*this, list](int64_t i) { return row(list[i]); };
  }
};
template <class T>
Head<T> head(const Tensor& t, int64_t b, int64_t h) {
  return {t.data<T>() + b * t.stride(0) + h * t.stride(1), t.stride(2)};
}

/// Scores are compared and subtracted as products q·k (their negatives for a negative scale) and
/// only then scaled: an offset common to all keys cancels before it is rounded once more.
template <class T>
struct ScoreScale {
  explicit ScoreScale(double scale)
      : sign(scale < 0 ? T{-1} : T{1}),
        size(std::max(static_cast<T>(std::abs(scale)), std::numeric_limits<T>::min())) {}
  T sign, size;  // size > 0: hidden keys have a score of -inf
};

/// Valid rows of one batch entry, ascending.
struct Rows {
  const int32_t* queries;
  const int32_t* visible;  // how many of `keys` each of `queries` sees; never decreasing
  const int32_t* keys;
  int64_t n_queries;
  int64_t n_keys;
};

/// The Rows of all batch entries (of one, when there are no masks).
class RowLists {
 public:
  RowLists(const SoftmaxAttentionOperands& in, Arena& arena)
      : entries_(in.key_valid->defined() || in.query_valid->defined() ? in.q->size(0) : 1),
        t_(in.q->size(2)),
        s_(in.k->size(2)) {
    queries_ = arena.take<int32_t>(entries_ * t_);
    visible_ = arena.take<int32_t>(entries_ * t_);
    keys_ = arena.take<int32_t>(entries_ * s_);
    counts_ = arena.take<int32_t>(entries_ * 2);
  }
  void fill(const SoftmaxAttentionOperands& in);
  Rows of(int64_t b) const {
    const int64_t e = entries_ == 1 ? 0 : b;
    return {queries_ + e * t_, visible_ + e * t_, keys_ + e * s_, counts_[2 * e],
            counts_[2 * e + 1]};
  }

 private:
  int64_t entries_, t_, s_;
  int32_t *queries_, *visible_, *keys_, *counts_;
};

/// Rows `list[0 … n)` of a head, packed into n × width.
template <class T>
void copy_rows(const Head<T>& from, const int32_t* list, int64_t n, int64_t width, T* to) {
  for (int64_t i = 0; i < n; ++i, to += width) {
    const T* row = from.row(list[i]);
    int64_t c = 0;
    for (; c + kLanes<T> <= width; c += kLanes<T>) store(to + c, load(row + c));
    for (; c < width; ++c) to[c] = row[c];
  }
}

/// Attention dropout: 1/(1-p) or 0 for a panel of (key, query) pairs, replayed from the draw.
class Dropout {
 public:
  Dropout(const SoftmaxAttentionArgs& args, int64_t s) : key_(args.key), s_(s) {
    on_ = args.dropout > 0;
    // uniform >= p, in units of 2^-24, in which uniform is an integer.
    threshold_ = static_cast<uint32_t>(std::ceil(args.dropout * 0x1p24));
    scale_ = 1.0 / (1.0 - args.dropout);
  }
  bool on() const { return on_; }
  /// Rows that `factors` may write beyond the keys: it works in groups of four.
  static constexpr int64_t kSlack = 3;

  /// Writes factors (j, q) for `keys[0 … n)` and `queries[0 … n_queries)` of head `bh` (b·H + h, T
  /// queries each) to `panel`, (n + kSlack) × ld. Returns it, or null when nothing is dropped.
  template <class T>
  const T* factors(int64_t bh, int64_t t, const int32_t* queries, int64_t n_queries,
                   const int32_t* keys, int64_t n, T* panel, int64_t ld) const;

 private:
  DrawKey key_;
  int64_t s_;
  bool on_;
  uint32_t threshold_;
  double scale_;
};

template <class T>
const T* Dropout::factors(int64_t bh, int64_t t, const int32_t* queries, int64_t n_queries,
                          const int32_t* keys, int64_t n, T* panel, int64_t ld) const {
  if (!on_) return nullptr;
  const T kept = static_cast<T>(scale_);
  const auto element = [&](int64_t q, int64_t j) {
    return static_cast<uint64_t>((bh * t + queries[std::min(q, n_queries - 1)]) * s_ + j);
  };
  if (keys[n - 1] - keys[0] != n - 1) {  // keys with holes: one number at a time
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t q = 0; q < n_queries; ++q) {
        const bool keep = random_bits(key_, element(q, keys[j])) >> 8 >= threshold_;
        panel[j * ld + q] = keep ? kept : T{0};
      }
      for (int64_t q = n_queries; q < ld; ++q) panel[j * ld + q] = T{0};
    }
    return panel;
  }
  // Numbers come in groups of four. A lane's first key may stand anywhere in its group, `early`
  // places in, so a group of rows takes its numbers from two groups of the draw.
  constexpr int64_t kMost = kPanel<T>;
  uint32_t group[kMost], early[kMost], bits[8][kMost] = {};
  for (int64_t q = 0; q < ld; ++q) {
    const uint64_t e = element(q, keys[0]);
    group[q] = static_cast<uint32_t>(e >> 2);
    early[q] = static_cast<uint32_t>(e & 3);
  }
  for (int64_t j = -4; j < n; j += 4) {
    const auto step = static_cast<uint32_t>(j / 4 + 1);
#pragma omp simd
    for (int64_t q = 0; q < ld; ++q) {
      const Philox4 r = random_block(key_, group[q] + step);
      for (int64_t i = 0; i < 4; ++i) {
        bits[i][q] = bits[i + 4][q];
        bits[i + 4][q] = r.v[i];
      }
    }
    if (j < 0) continue;
    for (int64_t i = 0; i < 4; ++i) {
      T* row = panel + (j + i) * ld;
#pragma omp simd
      for (int64_t q = 0; q < ld; ++q) {
        const uint32_t low = early[q] & 1 ? bits[i + 1][q] : bits[i][q];
        const uint32_t high = early[q] & 1 ? bits[i + 3][q] : bits[i + 2][q];
        row[q] = (early[q] & 2 ? high : low) >> 8 >= threshold_ ? kept : T{0};
      }
    }
  }
  return panel;
}

/// Blocks of at most `most` that n rows are cut into, about equal, in whole vectors.
template <class T>
struct Blocks {
  Blocks(int64_t rows, int64_t most) : n(rows) {
    const int64_t pieces = std::max<int64_t>(1, (n + most - 1) / most);
    size = std::max<int64_t>(kLanes<T>, whole_vectors<T>((n + pieces - 1) / pieces));
    count = (n + size - 1) / size;
  }
  int64_t begin(int64_t i) const { return i * size; }
  int64_t end(int64_t i) const { return std::min(n, (i + 1) * size); }
  int64_t n, size, count;
};

/// How many threads' scratch parallel_tasks(tasks, …) can use, and which one the caller is.
inline int64_t thread_count(int64_t tasks) {
  return tasks <= 1 || omp_in_parallel() ? 1 : omp_get_max_threads();
}
inline int64_t thread_number(int64_t threads) {
  return threads == 1 ? 0 : omp_get_thread_num();
}

}  // namespace macgrad::cpu::attention

// Softmax attention forward: blocks of keys against panels of queries with running maximum and sum
// (Milakov & Gimelshein 2018; Rabe & Staats 2021; Dao et al. 2022), never a T×S matrix. Scores are
// held transposed, a row a key and a lane a query: S^T = K·Q^T, then O^T = V^T·P^T.
// B batch, H heads, T queries, S keys, d and dv widths.
#include <array>

#include "macgrad/core/cpu/attention_rows.h"
#include "macgrad/core/error.h"

namespace macgrad::cpu {
namespace attention {

void RowLists::fill(const SoftmaxAttentionOperands& in) {
  const bool* key_ok = in.key_valid->defined() ? in.key_valid->data<bool>() : nullptr;
  const bool* query_ok = in.query_valid->defined() ? in.query_valid->data<bool>() : nullptr;
  const bool causal = in.args.causal;
  for (int64_t e = 0; e < entries_; ++e) {
    int32_t* keys = keys_ + e * s_;
    int32_t* queries = queries_ + e * t_;
    int32_t* visible = visible_ + e * t_;
    int32_t n_keys = 0;
    for (int64_t j = 0; j < s_; ++j) {
      if (!key_ok || key_ok[e * s_ + j]) keys[n_keys++] = static_cast<int32_t>(j);
    }
    int32_t n_queries = 0;
    int32_t seen = 0;  // keys at or before i + S - T
    for (int64_t i = 0; i < t_; ++i) {
      while (seen < n_keys && (!causal || keys[seen] <= i + s_ - t_)) ++seen;
      if (query_ok && !query_ok[e * t_ + i]) continue;
      queries[n_queries] = static_cast<int32_t>(i);
      visible[n_queries++] = seen;
    }
    counts_[2 * e] = n_queries;
    counts_[2 * e + 1] = n_keys;
  }
}

namespace {

constexpr int64_t kForwardKeys = 192;
constexpr int64_t kForwardPanels = 8;

template <class T>
struct Forward {
  Tensor query, key, value, out, statistics;
  ScoreScale<T> scale;
  int64_t heads, t, s, d, dv;
  RowLists rows;
  Dropout dropout;

  static constexpr int64_t kBlock = kForwardPanels * kPanel<T>;

  // One thread's memory, for a block of queries against a block of keys.
  struct Buffers {
    T *keys, *values;          // rows: kForwardKeys × d, × dv
    T *queries, *sums;         // panels: d × kBlock, dv × kBlock
    T *scores, *factors;       // one panel: kForwardKeys × kPanel
    T *maximum, *denominator;  // kBlock
  };
  static Buffers take(Arena& arena, int64_t d, int64_t dv, bool dropout) {
    Buffers b;
    b.keys = arena.take<T>(kForwardKeys * d);
    b.values = arena.take<T>(kForwardKeys * dv);
    b.queries = arena.take<T>(d * kBlock);
    b.sums = arena.take<T>(dv * kBlock);
    b.scores = arena.take<T>(kForwardKeys * kPanel<T>);
    b.factors = arena.take<T>(dropout ? (kForwardKeys + Dropout::kSlack) * kPanel<T> : 0);
    b.maximum = arena.take<T>(kBlock);
    b.denominator = arena.take<T>(kBlock);
    return b;
  }

  void run_block(int64_t b, int64_t h, int64_t begin, int64_t end, const Buffers& m) const;
  template <int NV>
  void run_panel(const Buffers& m, int64_t p0, const int32_t* visible, int64_t columns, int64_t j0,
                 int64_t n_keys, const T* factors) const;
  void clear_invalid(int64_t b, int64_t h) const;
};

// n_keys keys from j0 on against the panel at column p0 of the block: m.sums, m.maximum and
// m.denominator take them in. visible[0 … columns): of the panel's queries.
template <class T>
template <int NV>
void Forward<T>::run_panel(const Buffers& m, int64_t p0, const int32_t* visible, int64_t columns,
                           int64_t j0, int64_t n_keys, const T* factors) const {
  constexpr int64_t ld = NV * kLanes<T>;
  Vector<T> maximum[NV];
  alignas(64) T limits[ld];  // keys of this block that a lane sees
  for (int64_t i = 0; i < ld; ++i) {
    limits[i] = static_cast<T>(visible[std::min(i, columns - 1)] - j0);
  }
  T* const old_maximum = m.maximum + p0;
  for (int v = 0; v < NV; ++v) maximum[v] = load(old_maximum + v * kLanes<T>);
  const int64_t all_see = std::min<int64_t>(n_keys, visible[0] - j0);

  const T* queries = m.queries + p0 * d;
  for_row_tiles<kTileRows>(
      n_keys, [&]<int MR>(int64_t r) __attribute__((always_inline)) {
        Vector<T> score[MR][NV] = {};
        accumulate<T, MR, NV, false>(m.keys + r * d, d, queries, ld, d, score);
        if (r + MR > all_see) {
          for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
            const Vector<T> row = broadcast(static_cast<T>(r + i));
            const Vector<T> limit = load(limits + v * kLanes<T>);
            score[i][v] = row < limit ? score[i][v] : broadcast(-kInfinity<T>);
          });
        }
        for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
          maximum[v] = score[i][v] > maximum[v] ? score[i][v] : maximum[v];
          store(m.scores + (r + i) * ld + v * kLanes<T>, score[i][v]);
        });
      });

  const Vector<T> size = broadcast(scale.size);
  Vector<T> shift[NV];
  Vector<T> rescale[NV];
  Vector<T> sum[NV] = {};
  unrolled<NV>([&](auto v) __attribute__((always_inline)) {
    // A lane that has seen no key yet keeps maximum -inf; any finite shift gives it p = 0.
    shift[v] = maximum[v] == -kInfinity<T> ? Vector<T>{} : maximum[v];
    rescale[v] = exp_lanes((load(old_maximum + v * kLanes<T>) - shift[v]) * size);
    store(old_maximum + v * kLanes<T>, maximum[v]);
  });
  for (int64_t j = 0; j < n_keys; ++j) {
    unrolled<NV>([&](auto v) __attribute__((always_inline)) {
      T* at = m.scores + j * ld + v * kLanes<T>;
      Vector<T> p = exp_lanes((load(at) - shift[v]) * size);
      sum[v] += p;
      if (factors) p *= load(factors + j * ld + v * kLanes<T>);
      store(at, p);
    });
  }
  for (int v = 0; v < NV; ++v) {
    T* at = m.denominator + p0 + v * kLanes<T>;
    store(at, load(at) * rescale[v] + sum[v]);
  }

  T* sums = m.sums + p0 * dv;
  for_row_tiles<kTileRows>(
      dv, [&]<int MR>(int64_t r) __attribute__((always_inline)) {
        Vector<T> o[MR][NV] = {};
        accumulate<T, MR, NV, true>(m.values + r, dv, m.scores, ld, n_keys, o);
        for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
          T* at = sums + (r + i) * ld + v * kLanes<T>;
          store(at, load(at) * rescale[v] + o[i][v]);
        });
      });
}

template <class T>
void Forward<T>::run_block(int64_t b, int64_t h, int64_t begin, int64_t end,
                           const Buffers& m) const {
  const Rows lists = rows.of(b);
  const Head<T> hq = head<T>(query, b, h), hk = head<T>(key, b, h), hv = head<T>(value, b, h);
  const int64_t n = end - begin;
  const int32_t* list = lists.queries + begin;
  const int32_t* visible = lists.visible + begin;
  for (int64_t p0 = 0; p0 < n; p0 += kPanel<T>) {
    const int64_t columns = std::min<int64_t>(kPanel<T>, n - p0);
    rows_to_panel(hq.rows(list + p0), columns, d, scale.sign, m.queries + p0 * d,
                  whole_vectors<T>(columns), whole_vectors<T>(columns));
  }
  const int64_t width = whole_vectors<T>(n);
  std::fill_n(m.maximum, width, -kInfinity<T>);
  std::fill_n(m.denominator, width, T{0});
  std::fill_n(m.sums, width * dv, T{0});

  const int64_t most = visible[n - 1];
  for (int64_t j0 = 0; j0 < most; j0 += kForwardKeys) {
    const int64_t block_keys = std::min(kForwardKeys, most - j0);
    copy_rows(hk, lists.keys + j0, block_keys, d, m.keys);
    copy_rows(hv, lists.keys + j0, block_keys, dv, m.values);
    for (int64_t p0 = 0; p0 < n; p0 += kPanel<T>) {
      const int64_t columns = std::min<int64_t>(kPanel<T>, n - p0);
      const int64_t n_keys = std::min<int64_t>(block_keys, visible[p0 + columns - 1] - j0);
      if (n_keys <= 0) continue;
      const T* factors = dropout.factors(b * heads + h, t, list + p0, columns, lists.keys + j0,
                                         n_keys, m.factors, whole_vectors<T>(columns));
      with_panel_vectors<T>(columns, [&]<int NV>() {
        run_panel<NV>(m, p0, visible + p0, columns, j0, n_keys, factors);
      });
    }
  }

  const Head<T> ho = head<T>(out, b, h);
  T* kept = statistics.data<T>() + (b * heads + h) * t * 2;
  for (int64_t i = 0; i < n; ++i) {
    kept[2 * list[i]] = m.maximum[i];
    kept[2 * list[i] + 1] = m.denominator[i];
  }
  // No visible key: 0 / 0 becomes 0. A NaN stays one.
  for (int64_t i = 0; i < width; ++i) {
    m.denominator[i] = m.denominator[i] == 0 ? T{0} : 1 / m.denominator[i];
  }
  for (int64_t p0 = 0; p0 < n; p0 += kPanel<T>) {
    const int64_t columns = std::min<int64_t>(kPanel<T>, n - p0);
    panel_to_rows(m.sums + p0 * dv, whole_vectors<T>(columns), m.denominator + p0,
                  ho.rows(list + p0), columns, dv);
  }
}

template <class T>
void Forward<T>::clear_invalid(int64_t b, int64_t h) const {
  const Rows lists = rows.of(b);
  if (lists.n_queries == t) return;
  const Head<T> ho = head<T>(out, b, h);
  T* kept = statistics.data<T>() + (b * heads + h) * t * 2;
  const int32_t* next = lists.queries;
  const int32_t* last = lists.queries + lists.n_queries;
  for (int64_t i = 0; i < t; ++i) {
    if (next != last && *next == i) {
      ++next;
      continue;
    }
    std::fill_n(ho.row(i), dv, T{0});
    kept[2 * i] = -kInfinity<T>;
    kept[2 * i + 1] = T{0};
  }
}

template <class T>
void forward(const SoftmaxAttentionForward& x) {
  const SoftmaxAttentionOperands& in = x.in;
  const int64_t batch = in.q->size(0), heads = in.q->size(1);
  const int64_t t = in.q->size(2), s = in.k->size(2), d = in.q->size(3), dv = in.v->size(3);
  Arena arena(x.scratch.data());
  Forward<T> f{.query = in.q,
               .key = in.k,
               .value = in.v,
               .out = x.out,
               .statistics = x.statistics,
               .scale = ScoreScale<T>(in.args.scale),
               .heads = heads,
               .t = t,
               .s = s,
               .d = d,
               .dv = dv,
               .rows = RowLists(in, arena),
               .dropout = Dropout(in.args, s)};
  f.rows.fill(in);

  const int64_t most_blocks = Blocks<T>(t, f.kBlock).count;
  const int64_t tasks = batch * heads * most_blocks;
  const int64_t threads = thread_count(tasks);
  std::vector<typename Forward<T>::Buffers> buffers;
  for (int64_t i = 0; i < threads; ++i) buffers.push_back(f.take(arena, d, dv, f.dropout.on()));
  parallel_tasks(tasks, [&](int64_t task) {
    const int64_t b = task / (heads * most_blocks), h = task / most_blocks % heads;
    // The last block of causal attention is the longest: it starts first.
    const int64_t block = most_blocks - 1 - task % most_blocks;
    if (block == 0) f.clear_invalid(b, h);
    const Blocks<T> blocks(f.rows.of(b).n_queries, f.kBlock);
    if (block >= blocks.count) return;
    f.run_block(b, h, blocks.begin(block), blocks.end(block),
                buffers[static_cast<size_t>(thread_number(threads))]);
  });
}

template <class T>
size_t forward_scratch(const SoftmaxAttentionOperands& in) {
  Arena arena(nullptr);
  RowLists(in, arena);
  const int64_t blocks = Blocks<T>(in.q->size(2), Forward<T>::kBlock).count;
  const int64_t tasks = in.q->size(0) * in.q->size(1) * blocks;
  for (int64_t i = 0; i < thread_count(tasks); ++i)
    Forward<T>::take(arena, in.q->size(3), in.v->size(3), in.args.dropout > 0);
  return arena.bytes();
}

}  // namespace
}  // namespace attention

void softmax_attention_forward(const SoftmaxAttentionForward& x) {
  if (x.in.q->dtype() == DType::float64) {
    attention::forward<double>(x);
  } else {
    attention::forward<float>(x);
  }
}

Support softmax_attention_forward_supports(const SoftmaxAttentionOperands& in) {
  const DType dtype = in.q->dtype();
  if (dtype == DType::float32 || dtype == DType::float64) return {};
  return {false, fmt::format("the CPU kernel takes float32 and float64, got {}", name(dtype))};
}

size_t softmax_attention_forward_scratch(const SoftmaxAttentionOperands& in) {
  return in.q->dtype() == DType::float64 ? attention::forward_scratch<double>(in)
                                         : attention::forward_scratch<float>(in);
}

}  // namespace macgrad::cpu

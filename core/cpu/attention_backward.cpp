// Softmax attention backward: weights are recomputed (Dao et al. 2022), block by block, from
// the largest score and the sum of exponentials of each query.
// With P the weights, R the dropout factors, G = grad and D = rowsum(G ∘ out):
//   dP = R ∘ (G·V^T), dS = P ∘ (dP - D), dv = (R ∘ P)^T·G, dq = scale·dS·K, dk = scale·dS^T·Q.
// As in the forward pass P and dS are held transposed, a row a key and a lane a query. Every result
// element is summed by one thread in the order of the blocks, however the work is split.
// B batch, H heads, T queries, S keys, d and dv widths.
#include <vector>

#include "macgrad/core/cpu/attention_rows.h"

namespace macgrad::cpu {
namespace attention {
namespace {

constexpr int64_t kBackwardKeys = 120;  // a multiple of kFeatureRows
constexpr int64_t kBackwardPanels = 4;

template <class T>
inline constexpr int64_t kFeaturePanel = kFeatureVectors* kLanes<T>;

template <class T>
struct Backward {
  Tensor query, key, value, out, statistics, grad, dquery, dkey, dvalue;
  double scale;
  ScoreScale<T> score_scale;
  int64_t heads, t, s, d, dv;
  RowLists rows;
  Dropout dropout;

  static constexpr int64_t kBlock = kBackwardPanels * kPanel<T>;

  // One thread's memory, for a block of queries against a block of keys.
  struct Buffers {
    T *keys, *values;            // rows: kBackwardKeys × d, × dv
    T *queries, *grads, *sums;   // panels of queries: d × kBlock, dv × kBlock, d × kBlock
    T *query_rows, *grad_rows;   // panels of features: kBlock × d, × dv
    T *weights, *dscores;        // panels of queries: kBackwardKeys × kBlock
    T* factors;                  // one panel
    T *maximum, *share, *delta;  // kBlock: share is 1/Σ exp(score - maximum)
  };
  static Buffers take(Arena& arena, int64_t d, int64_t dv, bool dropout) {
    const int64_t d_whole = whole_vectors<T>(d), dv_whole = whole_vectors<T>(dv);
    Buffers b;
    b.keys = arena.take<T>(kBackwardKeys * d);
    b.values = arena.take<T>(kBackwardKeys * dv);
    b.queries = arena.take<T>(d * kBlock);
    b.grads = arena.take<T>(dv * kBlock);
    b.sums = arena.take<T>(d * kBlock);
    b.query_rows = arena.take<T>(kBlock * d_whole);
    b.grad_rows = arena.take<T>(kBlock * dv_whole);
    b.weights = arena.take<T>(kBackwardKeys * kBlock);
    b.dscores = arena.take<T>(kBackwardKeys * kBlock);
    b.factors = arena.take<T>(dropout ? (kBackwardKeys + Dropout::kSlack) * kPanel<T> : 0);
    b.maximum = arena.take<T>(kBlock);
    b.share = arena.take<T>(kBlock);
    b.delta = arena.take<T>(kBlock);
    return b;
  }

  enum class Want { all, dquery, dkey_dvalue };
  void run(int64_t b, int64_t h, int64_t query_begin, int64_t query_end, int64_t key_begin,
           int64_t key_end, Want want, const Buffers& m) const;
  void load_queries(int64_t b, int64_t h, const int32_t* list, int64_t n, const Buffers& m) const;
  template <int NV>
  void run_panel(const Buffers& m, int64_t p0, const int32_t* visible, int64_t columns, int64_t j0,
                 int64_t n_keys, const T* factors, bool want_dquery) const;
  void add_products(const Head<T>& to, const int32_t* list, int64_t n_keys, int64_t width,
                    const T* weights, const T* features, int64_t n, const int32_t* visible,
                    int64_t j0) const;
  void clear(int64_t b, int64_t h) const;
};

// Rows `list[0 … n)` times scale into panels of features, n × kFeaturePanel each; the last one is
// as wide as it needs to be, filled up with 0.
template <class T>
void pack_features(const Head<T>& from, const int32_t* list, int64_t n, int64_t width, T scale,
                   T* to) {
  for (int64_t c0 = 0; c0 < width; c0 += kFeaturePanel<T>) {
    const int64_t columns = std::min<int64_t>(kFeaturePanel<T>, width - c0);
    const int64_t ld = whole_vectors<T>(columns);
    for (int64_t i = 0; i < n; ++i, to += ld) {
      const T* row = from.row(list[i]) + c0;
      for (int64_t c = 0; c < columns; ++c) to[c] = scale * row[c];
      for (int64_t c = columns; c < ld; ++c) to[c] = T{0};
    }
  }
}

template <class T>
void Backward<T>::load_queries(int64_t b, int64_t h, const int32_t* list, int64_t n,
                               const Buffers& m) const {
  const Head<T> hq = head<T>(query, b, h), hg = head<T>(grad, b, h), ho = head<T>(out, b, h);
  for (int64_t p0 = 0; p0 < n; p0 += kPanel<T>) {
    const int64_t columns = std::min<int64_t>(kPanel<T>, n - p0);
    const int64_t ld = whole_vectors<T>(columns);
    rows_to_panel(hq.rows(list + p0), columns, d, score_scale.sign, m.queries + p0 * d, ld, ld);
    rows_to_panel(hg.rows(list + p0), columns, dv, T{1}, m.grads + p0 * dv, ld, ld);
  }
  pack_features(hq, list, n, d, static_cast<T>(scale), m.query_rows);
  pack_features(hg, list, n, dv, T{1}, m.grad_rows);
  std::fill_n(m.sums, whole_vectors<T>(n) * d, T{0});
  const T* kept = statistics.data<T>() + (b * heads + h) * t * 2;
  for (int64_t i = 0; i < whole_vectors<T>(n); ++i) {
    if (i >= n) {  // lanes without a query: weight e^-inf
      m.maximum[i] = kInfinity<T>;
      m.share[i] = m.delta[i] = T{0};
      continue;
    }
    m.maximum[i] = kept[2 * list[i]];
    m.share[i] = 1 / kept[2 * list[i] + 1];
    const T* g = hg.row(list[i]);
    const T* o = ho.row(list[i]);
    T sum{0};
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < dv; ++c) sum += g[c] * o[c];
    m.delta[i] = sum;
  }
}

// P and dS of n_keys keys from j0 on and the panel at column p0, and its part of dq.
template <class T>
template <int NV>
void Backward<T>::run_panel(const Buffers& m, int64_t p0, const int32_t* visible, int64_t columns,
                            int64_t j0, int64_t n_keys, const T* factors, bool want_dquery) const {
  constexpr int64_t ld = NV * kLanes<T>;
  const int64_t all_see = std::min<int64_t>(n_keys, visible[0] - j0);
  T* const weights = m.weights + p0 * kBackwardKeys;
  T* const dscores = m.dscores + p0 * kBackwardKeys;
  const T* queries = m.queries + p0 * d;
  const T* grads = m.grads + p0 * dv;
  for_row_tiles<kTileRows>(
      n_keys, [&]<int MR>(int64_t r) __attribute__((always_inline)) {
        Vector<T> score[MR][NV] = {};
        accumulate<T, MR, NV, false>(m.keys + r * d, d, queries, ld, d, score);
        for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
          store(weights + (r + i) * ld + v * kLanes<T>, score[i][v]);
        });
        Vector<T> dweight[MR][NV] = {};
        accumulate<T, MR, NV, false>(m.values + r * dv, dv, grads, ld, dv, dweight);
        for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
          store(dscores + (r + i) * ld + v * kLanes<T>, dweight[i][v]);
        });
      });

  alignas(64) T limits[ld];  // keys of this block that a lane sees
  for (int64_t i = 0; i < ld; ++i) {
    limits[i] = static_cast<T>(visible[std::min(i, columns - 1)] - j0);
  }
  const Vector<T> size = broadcast(score_scale.size);
  Vector<T> maximum[NV];
  Vector<T> share[NV];
  Vector<T> delta[NV];
  unrolled<NV>([&](auto v) __attribute__((always_inline)) {
    maximum[v] = load(m.maximum + p0 + v * kLanes<T>);
    share[v] = load(m.share + p0 + v * kLanes<T>);
    delta[v] = load(m.delta + p0 + v * kLanes<T>);
  });
  for (int64_t j = 0; j < n_keys; ++j) {
    unrolled<NV>([&](auto v) __attribute__((always_inline)) {
      T* at = weights + j * ld + v * kLanes<T>;
      T* dat = dscores + j * ld + v * kLanes<T>;
      Vector<T> p = exp_lanes((load(at) - maximum[v]) * size) * share[v];
      if (j >= all_see) {
        p = broadcast(static_cast<T>(j)) < load(limits + v * kLanes<T>) ? p : Vector<T>{};
      }
      Vector<T> dp = load(dat);
      if (factors) {
        const Vector<T> factor = load(factors + j * ld + v * kLanes<T>);
        dp *= factor;
        store(dat, p * (dp - delta[v]));
        store(at, p * factor);
      } else {
        store(dat, p * (dp - delta[v]));
        store(at, p);
      }
    });
  }

  if (!want_dquery) return;
  T* sums = m.sums + p0 * d;
  for_row_tiles<kTileRows>(
      d, [&]<int MR>(int64_t r) __attribute__((always_inline)) {
        Vector<T> dq[MR][NV] = {};
        accumulate<T, MR, NV, true>(m.keys + r, d, dscores, ld, n_keys, dq);
        for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
          T* at = sums + (r + i) * ld + v * kLanes<T>;
          store(at, load(at) + dq[i][v]);
        });
      });
}

// Rows `list[0 … n_keys)` of `to` += weights^T·features, over the n queries of the block. A panel
// of queries that sees none of a tile's keys holds no weights for them.
template <class T>
void Backward<T>::add_products(const Head<T>& to, const int32_t* list, int64_t n_keys,
                               int64_t width, const T* weights, const T* features, int64_t n,
                               const int32_t* visible, int64_t j0) const {
  for (int64_t c0 = 0; c0 < width; c0 += kFeaturePanel<T>) {
    const int64_t columns = std::min<int64_t>(kFeaturePanel<T>, width - c0);
    const int64_t ld = whole_vectors<T>(columns);
    const auto panel = [&]<int NV>() __attribute__((always_inline)) {
      int64_t first = 0;
      for_row_tiles<kFeatureRows>(
          n_keys, [&]<int MR>(int64_t r) __attribute__((always_inline)) {
            while (visible[std::min(n, first + kPanel<T>) - 1] <= j0 + r) first += kPanel<T>;
            Vector<T> sum[MR][NV] = {};
            for (int64_t p0 = first; p0 < n; p0 += kPanel<T>) {
              const int64_t queries = std::min<int64_t>(kPanel<T>, n - p0);
              const int64_t lanes = whole_vectors<T>(queries);
              accumulate<T, MR, NV, false>(weights + p0 * kBackwardKeys + r * lanes, lanes,
                                           features + p0 * ld, ld, queries, sum);
            }
            for_tile<MR, NV>([&](auto i, auto v) __attribute__((always_inline)) {
              T* at = to.row(list[r + i]) + c0 + v * kLanes<T>;
              const int64_t left = columns - v * kLanes<T>;
              if (left >= kLanes<T>) {
                store(at, load(at) + sum[i][v]);
              } else {
                for (int64_t c = 0; c < left; ++c) at[c] += sum[i][v][c];
              }
            });
          });
    };
    if (ld == kFeaturePanel<T>) {
      panel.template operator()<kFeatureVectors>();
    } else {
      panel.template operator()<1>();
    }
    features += n * ld;
  }
}

// Listed queries and keys in the given ranges (key_begin a multiple of kBackwardKeys) against each
// other. dkey and dvalue are added to; dquery is written.
template <class T>
void Backward<T>::run(int64_t b, int64_t h, int64_t query_begin, int64_t query_end,
                      int64_t key_begin, int64_t key_end, Want want, const Buffers& m) const {
  const Rows lists = rows.of(b);
  const Head<T> hk = head<T>(key, b, h), hv = head<T>(value, b, h);
  const Head<T> hdq = head<T>(dquery, b, h), hdk = head<T>(dkey, b, h), hdv = head<T>(dvalue, b, h);
  for (int64_t i0 = query_begin; i0 < query_end; i0 += kBlock) {
    const int64_t n = std::min(kBlock, query_end - i0);
    const int32_t* list = lists.queries + i0;
    const int32_t* visible = lists.visible + i0;
    const int64_t most = std::min<int64_t>(key_end, visible[n - 1]);
    if (most <= key_begin) continue;
    load_queries(b, h, list, n, m);
    for (int64_t j0 = key_begin; j0 < most; j0 += kBackwardKeys) {
      const int64_t block_keys = std::min(kBackwardKeys, most - j0);
      const int32_t* keys = lists.keys + j0;
      copy_rows(hk, keys, block_keys, d, m.keys);
      copy_rows(hv, keys, block_keys, dv, m.values);
      for (int64_t p0 = 0; p0 < n; p0 += kPanel<T>) {
        const int64_t columns = std::min<int64_t>(kPanel<T>, n - p0);
        const int64_t ld = whole_vectors<T>(columns);
        const int64_t n_keys = std::min<int64_t>(block_keys, visible[p0 + columns - 1] - j0);
        if (n_keys <= 0) continue;
        const T* factors =
            dropout.factors(b * heads + h, t, list + p0, columns, keys, n_keys, m.factors, ld);
        with_panel_vectors<T>(columns, [&]<int NV>() {
          run_panel<NV>(m, p0, visible + p0, columns, j0, n_keys, factors,
                        want != Want::dkey_dvalue);
        });
        // The last tile of keys in add_products may reach beyond the panel's keys.
        const int64_t zeros = (std::min<int64_t>(block_keys, n_keys + kFeatureRows) - n_keys) * ld;
        std::fill_n(m.weights + p0 * kBackwardKeys + n_keys * ld, zeros, T{0});
        std::fill_n(m.dscores + p0 * kBackwardKeys + n_keys * ld, zeros, T{0});
      }
      if (want == Want::dquery) continue;
      add_products(hdv, keys, block_keys, dv, m.weights, m.grad_rows, n, visible, j0);
      add_products(hdk, keys, block_keys, d, m.dscores, m.query_rows, n, visible, j0);
    }
    if (want == Want::dkey_dvalue) continue;
    T factor[kPanel<T>];
    std::fill_n(factor, kPanel<T>, static_cast<T>(scale));
    for (int64_t p0 = 0; p0 < n; p0 += kPanel<T>) {
      const int64_t columns = std::min<int64_t>(kPanel<T>, n - p0);
      panel_to_rows(m.sums + p0 * d, whole_vectors<T>(columns), factor, hdq.rows(list + p0),
                    columns, d);
    }
  }
}

template <class T>
void Backward<T>::clear(int64_t b, int64_t h) const {
  const Head<T> hdq = head<T>(dquery, b, h), hdk = head<T>(dkey, b, h), hdv = head<T>(dvalue, b, h);
  for (int64_t i = 0; i < t; ++i) std::fill_n(hdq.row(i), d, T{0});
  for (int64_t j = 0; j < s; ++j) {
    std::fill_n(hdk.row(j), d, T{0});
    std::fill_n(hdv.row(j), dv, T{0});
  }
}

// With fewer heads than keep the threads busy, blocks of queries (for dq) and of keys (for dk and
// dv) are tasks of their own: 7 products instead of 5, the same sums.
template <class T>
struct Split {
  Split(int64_t heads, int64_t t, int64_t s) {
    const int64_t threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    query_tasks = (t + Backward<T>::kBlock - 1) / Backward<T>::kBlock;
    key_tasks = (s + kBackwardKeys - 1) / kBackwardKeys;
    const int64_t rounds = (heads + threads - 1) / threads;
    on = 5 * rounds * threads > 7 * heads && query_tasks > 1 && key_tasks > 1;
    tasks = on ? heads * std::max(query_tasks, key_tasks) : heads;
  }
  bool on;
  int64_t query_tasks, key_tasks, tasks;
};

template <class T>
void backward(const SoftmaxAttentionBackward& x) {
  using Want = typename Backward<T>::Want;
  const SoftmaxAttentionOperands& in = x.in;
  const int64_t batch = in.q->size(0), heads = in.q->size(1);
  const int64_t t = in.q->size(2), s = in.k->size(2);
  const int64_t d = in.q->size(3), value_width = in.v->size(3);
  Arena arena(x.scratch.data());
  Backward<T> f{in.q,
                in.k,
                in.v,
                x.out,
                x.statistics,
                x.grad,
                x.dq,
                x.dk,
                x.dv,
                in.args.scale,
                ScoreScale<T>(in.args.scale),
                heads,
                t,
                s,
                d,
                value_width,
                RowLists(in, arena),
                Dropout(in.args, s)};
  f.rows.fill(in);

  const Split<T> split(batch * heads, t, s);
  const int64_t threads = thread_count(split.tasks);
  std::vector<typename Backward<T>::Buffers> all;
  for (int64_t i = 0; i < threads; ++i) {
    all.push_back(f.take(arena, d, value_width, f.dropout.on()));
  }
  const auto buffers = [&]() -> const auto& {
    return all[static_cast<size_t>(thread_number(threads))];
  };
  if (!split.on) {
    parallel_tasks(batch * heads, [&](int64_t task) {
      const int64_t b = task / heads, h = task % heads;
      const Rows lists = f.rows.of(b);
      f.clear(b, h);
      f.run(b, h, 0, lists.n_queries, 0, lists.n_keys, Want::all, buffers());
    });
    return;
  }
  parallel_tasks(batch * heads, [&](int64_t task) { f.clear(task / heads, task % heads); });
  parallel_tasks(batch * heads * split.query_tasks, [&](int64_t task) {
    const int64_t head_index = task / split.query_tasks;
    const int64_t begin = (split.query_tasks - 1 - task % split.query_tasks) * f.kBlock;
    const Rows lists = f.rows.of(head_index / heads);
    f.run(head_index / heads, head_index % heads, begin,
          std::min(lists.n_queries, begin + f.kBlock), 0, lists.n_keys, Want::dquery, buffers());
  });
  parallel_tasks(batch * heads * split.key_tasks, [&](int64_t task) {
    const int64_t head_index = task / split.key_tasks;
    const int64_t begin = task % split.key_tasks * kBackwardKeys;
    const Rows lists = f.rows.of(head_index / heads);
    f.run(head_index / heads, head_index % heads, 0, lists.n_queries, begin,
          std::min(lists.n_keys, begin + kBackwardKeys), Want::dkey_dvalue, buffers());
  });
}

template <class T>
size_t backward_scratch(const SoftmaxAttentionOperands& in) {
  Arena arena(nullptr);
  RowLists(in, arena);
  const Split<T> split(in.q->size(0) * in.q->size(1), in.q->size(2), in.k->size(2));
  for (int64_t i = 0; i < thread_count(split.tasks); ++i)
    Backward<T>::take(arena, in.q->size(3), in.v->size(3), in.args.dropout > 0);
  return arena.bytes();
}

}  // namespace
}  // namespace attention

void softmax_attention_backward(const SoftmaxAttentionBackward& x) {
  if (x.in.q->dtype() == DType::float64) {
    attention::backward<double>(x);
  } else {
    attention::backward<float>(x);
  }
}

Support softmax_attention_backward_supports(const SoftmaxAttentionOperands& in) {
  return softmax_attention_forward_supports(in);
}

size_t softmax_attention_backward_scratch(const SoftmaxAttentionOperands& in) {
  return in.q->dtype() == DType::float64 ? attention::backward_scratch<double>(in)
                                         : attention::backward_scratch<float>(in);
}

}  // namespace macgrad::cpu

// Reductions of the middle dimension of (A, R, N) in one read of x. Long ones are cut into pieces
// over the card (reduce_tile.cuh), whose partial results are merged in order by a second launch,
// sums in float64. cumsum goes the same way: sums of pieces, then every piece from its start.
#include "macgrad/cuda/reduce_tile.cuh"

#include "macgrad/core/kernels/arrays.h"

namespace macgrad::cuda {
namespace {

constexpr int kThreads = 256;

// Sums of T in Acc, written as O.
template <class T, class Acc, class O>
struct SumReducer {
  using Element = T;
  using State = Acc;
  const T* x;
  O* y;

  __device__ State start() const { return State(0); }
  __device__ void take(State& s, compute_t<T> value, int64_t, int64_t) const {
    s += static_cast<Acc>(value);
  }
  __device__ void merge(State& s, const State& other) const { s += other; }
  __device__ void finish(int64_t at, const State& s) const {
    y[at] = static_cast<O>(static_cast<compute_t<O>>(s));
  }
};

// The greatest (sign 1) or smallest (sign -1) value and its first place; NaN wins, the first NaN
// too. That is an order of all (value, place) pairs, so any cut gives the same result. `places`
// are those of the elements in a second pass, absent in the first one, where it is the row.
template <class T, int sign>
struct ExtremumReducer {
  using Element = T;
  using C = compute_t<T>;
  struct State {
    C value;
    int64_t place;  // -1: nothing seen
  };
  const T* x;
  const int64_t* places;
  T* y;
  int64_t* index;

  __device__ State start() const { return {C(0), -1}; }
  __device__ void take(State& s, C value, int64_t at, int64_t row) const {
    merge(s, State{value, places ? places[at] : row});
  }
  __device__ void merge(State& s, const State& other) const {
    if (other.place >= 0 && (s.place < 0 || beats(other, s))) s = other;
  }
  __device__ void finish(int64_t at, const State& s) const {
    y[at] = static_cast<T>(s.value);
    index[at] = s.place;
  }

  __device__ static bool beats(const State& a, const State& b) {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    if (a_nan != b_nan) return a_nan;
    if (!a_nan && a.value != b.value) return sign > 0 ? a.value > b.value : a.value < b.value;
    return a.place < b.place;
  }
};

ReduceTiling tiling_of(const Tensor& x, int pack, bool whole = false) {
  const bool fits = aligned_for(x.raw(), static_cast<size_t>(pack) * item_size(x.dtype()));
  return reduce_tiling(x.size(0), x.size(1), x.size(2), pack, fits, card().multiprocessors, whole);
}

template <int sign>
void extremum(const char* op, const Tensor& x, const Tensor& y, const Tensor& index) {
  require(x.size(1) >= 1, "[{}] of an empty dimension, shape {}", op, x.shape());
  int64_t* places = index.data<int64_t>();
  dispatch_floating(x.dtype(), op, [&]<class T>() {
    constexpr int pack = std::min(4, kPacked<T>);
    const ReduceTiling t = tiling_of(x, pack);
    if (t.pieces == 1) {
      launch_reduce<pack>(ExtremumReducer<T, sign>{x.data<T>(), nullptr, y.data<T>(), places}, t);
      return;
    }
    const Shape shape{t.outer, t.pieces, t.n};
    const Tensor best = Tensor::empty(shape, x.dtype(), x.device());
    const Tensor where = Tensor::empty(shape, DType::int64, x.device());
    launch_reduce<pack>(
        ExtremumReducer<T, sign>{x.data<T>(), nullptr, best.data<T>(), where.data<int64_t>()}, t);
    launch_reduce<1>(
        ExtremumReducer<T, sign>{best.data<T>(), where.data<int64_t>(), y.data<T>(), places},
        tiling_of(best, 1, /*whole=*/true));
  });
}

// ---- running sums: a thread has one column of one piece of rows.

struct ScanShape {
  int64_t outer, rows, n, pieces, piece_rows;
  bool reverse;

  MACGRAD_HD int64_t columns() const { return outer * n; }
  /// Place of row r of column i, counted in the direction of the sum.
  MACGRAD_HD int64_t at(int64_t i, int64_t r) const {
    return (i / n * rows + (reverse ? rows - 1 - r : r)) * n + i % n;
  }
};

constexpr int kBatch = 8;  // loads in flight

// Adds the rows [begin, end) of column i to total, giving use(place, total) the sum at each row.
template <class T, class Use>
__device__ inline void scan_rows(const T* x, const ScanShape& s, int64_t i, int64_t begin,
                                 int64_t end, compute_t<T> total, Use use) {
  const int64_t first = s.at(i, begin), step = s.reverse ? -s.n : s.n;
  const int64_t count = end - begin;
  for (int64_t r = 0; r < count; r += kBatch) {
    compute_t<T> in[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b)
      in[b] = r + b < count ? load(x + first + (r + b) * step) : compute_t<T>(0);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      total += in[b];
      if (r + b < count) use(first + (r + b) * step, total);
    }
  }
}

// sums (pieces, A·N): of each piece.
template <class T>
__global__ void piece_sums(const T* x, compute_t<T>* sums, ScanShape s) {
  const int64_t columns = s.columns();
  for (int64_t j = thread_index(); j < columns * s.pieces; j += thread_count()) {
    const int64_t begin = j / columns * s.piece_rows;
    const int64_t end = std::min(s.rows, begin + s.piece_rows);
    compute_t<T> total = 0;
    scan_rows(x, s, j % columns, begin, end, compute_t<T>(0),
              [&](int64_t, compute_t<T> sum) { total = sum; });
    sums[j] = total;
  }
}

// From the sum of each piece to the sum of all before it, in place.
template <class C>
__global__ void piece_starts(C* sums, int64_t columns, int64_t pieces) {
  for (int64_t i = thread_index(); i < columns; i += thread_count()) {
    double total = 0;
    for (int64_t p = 0; p < pieces; p += kBatch) {
      C in[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) in[b] = p + b < pieces ? sums[(p + b) * columns + i] : C(0);
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (p + b < pieces) sums[(p + b) * columns + i] = static_cast<C>(total);
        total += static_cast<double>(in[b]);
      }
    }
  }
}

template <class T>
__global__ void scan_pieces(const T* x, T* y, const compute_t<T>* starts, ScanShape s) {
  const int64_t columns = s.columns();
  for (int64_t j = thread_index(); j < columns * s.pieces; j += thread_count()) {
    const int64_t begin = j / columns * s.piece_rows;
    const int64_t end = std::min(s.rows, begin + s.piece_rows);
    scan_rows(x, s, j % columns, begin, end, starts ? starts[j] : compute_t<T>(0),
              [&](int64_t at, compute_t<T> sum) { y[at] = static_cast<T>(sum); });
  }
}

}  // namespace

void sum(In x, Out y) {
  dispatch_floating(x->dtype(), "sum", [&]<class T>() {
    using C = compute_t<T>;
    constexpr int pack = std::min(4, kPacked<T>);
    const ReduceTiling t = tiling_of(x, pack);
    if (t.pieces == 1) {
      launch_reduce<pack>(SumReducer<T, C, T>{x->data<T>(), y->data<T>()}, t);
      return;
    }
    const Tensor partial =
        Tensor::empty({t.outer, t.pieces, t.n}, compute_dtype(x->dtype()), x->device());
    launch_reduce<pack>(SumReducer<T, C, C>{x->data<T>(), partial.data<C>()}, t);
    launch_reduce<1>(SumReducer<C, double, T>{partial.data<C>(), y->data<T>()},
                     tiling_of(partial, 1, /*whole=*/true));
  });
}

void max(In x, Out y, Out index) {
  extremum<1>("max", x, y, index);
}
void min(In x, Out y, Out index) {
  extremum<-1>("min", x, y, index);
}

void cumsum(In x, Out y, bool reverse) {
  ScanShape s{x->size(0), x->size(1), x->size(2), 1, x->size(1), reverse};
  if (x->numel() == 0) return;
  // Columns alone fill the card from about 512 threads a multiprocessor on.
  constexpr int64_t kFewestRows = 32, kMostPieces = 1024;
  const int64_t wanted = int64_t{card().multiprocessors} * 512 / s.columns();
  const int64_t pieces =
      std::clamp<int64_t>(std::min(wanted, s.rows / kFewestRows), 1, kMostPieces);
  s.piece_rows = (s.rows + pieces - 1) / pieces;
  s.pieces = (s.rows + s.piece_rows - 1) / s.piece_rows;
  dispatch_floating(x->dtype(), "cumsum", [&]<class T>() {
    using C = compute_t<T>;
    const LaunchShape all{blocks_strided(s.columns() * s.pieces, kThreads), kThreads};
    Tensor starts;
    if (s.pieces > 1) {
      starts = Tensor::empty({s.pieces, s.columns()}, compute_dtype(x->dtype()), x->device());
      launch(piece_sums<T>, all, x->data<T>(), starts.data<C>(), s);
      launch(piece_starts<C>, {blocks_strided(s.columns(), kThreads), kThreads}, starts.data<C>(),
             s.columns(), s.pieces);
    }
    const C* from = starts.defined() ? starts.data<C>() : nullptr;
    launch(scan_pieces<T>, all, x->data<T>(), y->data<T>(), from, s);
  });
}

}  // namespace macgrad::cuda

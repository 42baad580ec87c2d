// Gathers and scatters over (A, R, N), the same bits every time and without atomics on values.
// index_add sorts the places by the row they go to (index_sort.cuh); a warp then adds 32 sorted
// places at a time in order of k, and what a row has in other warps is added in their order.
// scatter_add gives each column a thread that goes through k, as on the CPU, or where that would
// leave the card idle, sorts all elements by destination. Indices outside their tensor are skipped
// and reported by the next read of a value (index_fault.h).
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/index_fault.h"
#include "macgrad/cuda/index_sort.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/pack.cuh"

namespace macgrad::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLargestNumber = 0xffffffff;  // of a half of a sorted number

struct Bounds {
  const char* op;
  int64_t extent;
  IndexFault* fault;

  __device__ bool hold(int64_t index, int64_t place) const {
    if (index >= 0 && index < extent) return true;
    if (atomicCAS(&fault->noted, 0, 1) == 0) {
      fault->op = op;
      fault->index = index;
      fault->place = place;
      fault->extent = extent;
    }
    return false;
  }
};

template <class T>
__global__ void gather_elements(const T* x, const int64_t* index, T* y, int64_t count, int64_t kn,
                                int64_t n, Bounds bounds) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    const int64_t row = index[i];
    y[i] = bounds.hold(row, i) ? x[(i / kn * bounds.extent + row) * n + i % n] : T{};
  }
}

// y row i = x row (i / k, index[i % k]): rows of `units` units, `lanes` neighbouring threads each.
template <class Unit>
__global__ void select_rows(const Unit* x, const int64_t* index, Unit* y, int64_t outer, int64_t k,
                            int64_t units, int lanes, Bounds bounds) {
  const int64_t lane = thread_index() % lanes;
  for (int64_t i = thread_index() / lanes; i < outer * k; i += thread_count() / lanes) {
    const int64_t a = outer == 1 ? 0 : i / k;
    const int64_t row = index[i - a * k];
    const bool inside = bounds.hold(row, i - a * k);
    const Unit* from = x + (a * bounds.extent + row) * units;
    for (int64_t u = lane; u < units; u += lanes) y[i * units + u] = inside ? from[u] : Unit{};
  }
}

template <class T>
__global__ void scatter_columns(const int64_t* index, const T* source, compute_t<T>* y,
                                int64_t outer, int64_t k, int64_t n, Bounds bounds) {
  for (int64_t i = thread_index(); i < outer * n; i += thread_count()) {
    const int64_t a = i / n, c = i % n;
    for (int64_t j = 0; j < k; ++j) {
      const int64_t from = (a * k + j) * n + c, row = index[from];
      if (!bounds.hold(row, from)) continue;
      y[(a * bounds.extent + row) * n + c] += load(source + from);
    }
  }
}

// ---- sums by destination

// Numbers to sort (index_sort.cuh); indices outside sort behind all destinations.
struct RowOfPlace {
  const int64_t* index;
  Bounds bounds;
  __device__ uint64_t operator()(int64_t k) const {
    const int64_t row = index[k];
    return placed(static_cast<uint64_t>(bounds.hold(row, k) ? row : bounds.extent),
                  static_cast<uint64_t>(k));
  }
};
struct ElementOfPlace {
  const int64_t* index;
  int64_t kn, n, destinations;
  Bounds bounds;
  __device__ uint64_t operator()(int64_t i) const {
    const int64_t row = index[i];
    const int64_t to =
        bounds.hold(row, i) ? (i / kn * bounds.extent + row) * n + i % n : destinations;
    return placed(static_cast<uint64_t>(to), static_cast<uint64_t>(i));
  }
};

// source (A, places, N) is added to y (A, rows, N) by order (places). Sorted places come in chunks
// of a warp's width, columns in groups that a warp reads at once.
struct SortedSum {
  int64_t outer, places, rows, n, chunks, groups;

  MACGRAD_HD int64_t warps() const { return outer * chunks * groups; }
};

MACGRAD_HD inline uint32_t destination(uint64_t number) {
  return static_cast<uint32_t>(number >> 32);
}

template <class T, int pack>
__device__ inline void add_to(T* y, const compute_t<T> (&sum)[pack]) {
  using Pack = Packed<T, pack>;
  Pack old = *reinterpret_cast<Pack*>(y);
#pragma unroll
  for (int j = 0; j < pack; ++j) old.v[j] = static_cast<T>(load(&old.v[j]) + sum[j]);
  *reinterpret_cast<Pack*>(y) = old;
}

// The chunk's part of each row that it touches. A row that lies in this chunk alone gets its sum;
// other parts go to partial (A, chunks, 2, N): [0] the part that continues the chunk before, [1]
// the part that begins here and goes on.
template <class T, int pack>
__global__ void add_chunks(const uint64_t* order, const T* source, T* y, compute_t<T>* partial,
                           SortedSum s) {
  using C = compute_t<T>;
  using Pack = Packed<T, pack>;
  constexpr int kBatch = 4;  // rows in flight
  const int64_t warp = thread_index() / kWarp;
  if (warp >= s.warps()) return;
  const auto lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t column = (warp % s.groups * kWarp + lane) * pack;
  const int64_t chunk = warp / s.groups % s.chunks, a = warp / s.groups / s.chunks;
  const int64_t begin = chunk * kWarp;
  const int count = static_cast<int>(std::min<int64_t>(kWarp, s.places - begin));
  const bool active = column < s.n;

  const uint64_t number = order[begin + std::min(lane, count - 1)];
  const uint32_t row = destination(number), place = static_cast<uint32_t>(number);
  const uint32_t row_before = __shfl_up_sync(kFullWarp, row, 1);
  const unsigned heads = __ballot_sync(kFullWarp, lane > 0 && row != row_before);
  const uint32_t first_row = __shfl_sync(kFullWarp, row, 0);
  const uint32_t last_row = __shfl_sync(kFullWarp, row, kWarp - 1);
  const bool continues = begin > 0 && destination(order[begin - 1]) == first_row;
  const bool goes_on = begin + count < s.places && destination(order[begin + count]) == last_row;

  C sum[pack] = {};
  int from = 0;  // where the present row began
  const auto flush = [&](int end) {
    const uint32_t to = __shfl_sync(kFullWarp, row, from);
    const bool before = from == 0 && continues, after = end == count && goes_on;
    if (active && to < s.rows) {
      if (before || after) {
        C* out = partial + ((a * s.chunks + chunk) * 2 + (before ? 0 : 1)) * s.n + column;
#pragma unroll
        for (int j = 0; j < pack; ++j) out[j] = sum[j];
      } else {
        add_to<T, pack>(y + (a * s.rows + to) * s.n + column, sum);
      }
    }
#pragma unroll
    for (int j = 0; j < pack; ++j) sum[j] = C(0);
    from = end;
  };
  for (int i = 0; i < count; i += kBatch) {
    Pack in[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t k = __shfl_sync(kFullWarp, place, std::min(i + b, kWarp - 1));
      if (active && i + b < count)
        in[b] = *reinterpret_cast<const Pack*>(source + (a * s.places + k) * s.n + column);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (i + b >= count) break;
      if (heads >> (i + b) & 1) flush(i + b);
#pragma unroll
      for (int j = 0; j < pack; ++j)
        if (active) sum[j] += load(&in[b].v[j]);
    }
  }
  flush(count);
}

// Rows that began in a chunk and went on: their parts in order of the chunks.
template <class T, int pack>
__global__ void add_long_rows(const uint64_t* order, const compute_t<T>* partial, T* y,
                              SortedSum s) {
  using C = compute_t<T>;
  const int64_t warp = thread_index() / kWarp;
  if (warp >= s.warps()) return;
  const auto lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t column = (warp % s.groups * kWarp + lane) * pack;
  const int64_t chunk = warp / s.groups % s.chunks, a = warp / s.groups / s.chunks;
  const int64_t begin = chunk * kWarp, end = begin + kWarp;
  if (end >= s.places || column >= s.n) return;
  const uint32_t row = destination(order[end - 1]);
  if (row >= s.rows || destination(order[end]) != row) return;
  if (begin > 0 && destination(order[begin - 1]) == row) return;  // began before
  // The last chunk that starts inside this row.
  int64_t last = chunk + 1, beyond = s.chunks;
  while (beyond - last > 1) {
    const int64_t middle = (last + beyond) / 2;
    if (destination(order[middle * kWarp]) == row) {
      last = middle;
    } else {
      beyond = middle;
    }
  }
  const C* at = partial + a * s.chunks * 2 * s.n + column;
  C sum[pack];
#pragma unroll
  for (int j = 0; j < pack; ++j) sum[j] = at[(chunk * 2 + 1) * s.n + j];
#pragma unroll 8
  for (int64_t c = chunk + 1; c <= last; ++c) {
#pragma unroll
    for (int j = 0; j < pack; ++j) sum[j] += at[c * 2 * s.n + j];
  }
  add_to<T, pack>(y + (a * s.rows + row) * s.n + column, sum);
}

template <class T>
void add_sorted(const Tensor& order, const T* source, T* y, int64_t outer, int64_t rows,
                int64_t n) {
  using C = compute_t<T>;
  constexpr int most = std::min(4, kPacked<T>);
  const auto run = [&]<int pack>() {
    SortedSum s{outer, order.numel(), rows, n, 0, 0};
    s.chunks = (s.places + kWarp - 1) / kWarp;
    s.groups = (n + kWarp * pack - 1) / (kWarp * pack);
    const auto* numbers = static_cast<const uint64_t*>(order.raw());
    const Tensor partial = Tensor::empty({s.chunks > 1 ? outer * s.chunks * 2 : 0, n},
                                         compute_dtype(dtype_of<T>()), order.device());
    C* parts = partial.data<C>();
    const LaunchShape shape{blocks_for(s.warps() * kWarp, kThreads), kThreads};
    launch(add_chunks<T, pack>, shape, numbers, source, y, parts, s);
    if (s.chunks > 1) launch(add_long_rows<T, pack>, shape, numbers, parts, y, s);
  };
  constexpr size_t bytes = most * sizeof(T);
  if (n % most == 0 && aligned_for(source, bytes) && aligned_for(y, bytes)) {
    run.template operator()<most>();
  } else {
    run.template operator()<1>();
  }
}

// Columns that are enough threads for the card, and rows that one thread may take in turn.
constexpr int64_t kEnoughColumns = 8192, kFewRows = 32;

}  // namespace

void gather(In x, In index, Out y) {
  const int64_t n = x->size(2), k = index->size(1);
  const Bounds bounds{"gather", x->size(1), index_fault()};
  dispatch_any(x->dtype(), [&]<class T>() {
    launch(gather_elements<T>, {blocks_strided(y->numel(), kThreads), kThreads}, x->data<T>(),
           index->data<int64_t>(), y->data<T>(), y->numel(), k * n, n, bounds);
  });
}

void scatter_add(In index, In source, InOut y) {
  const int64_t outer = y->size(0), rows = y->size(1), n = y->size(2), k = index->size(1);
  const Bounds bounds{"scatter_add", rows, index_fault()};
  const int64_t* at = index->data<int64_t>();
  const bool sorts = k > kFewRows && outer * n < kEnoughColumns &&
                     index->numel() <= kLargestNumber && y->numel() < kLargestNumber;
  dispatch_floating(y->dtype(), "scatter_add", [&]<class T>() {
    if (index->numel() == 0) return;
    if (!sorts) {
      using C = compute_t<T>;
      const Tensor sums = y->to(dtype_of<C>());
      launch(scatter_columns<T>, {blocks_strided(outer * n, kThreads), kThreads}, at,
             source->data<T>(), sums.data<C>(), outer, k, n, bounds);
      if constexpr (!std::is_same_v<T, C>) y->copy_from(sums);
      return;
    }
    const Tensor order = sorted_numbers(ElementOfPlace{at, k * n, n, y->numel(), bounds},
                                        index->numel(), y->device());
    add_sorted(order, source->data<T>(), y->data<T>(), 1, y->numel(), 1);
  });
}

void index_select(In x, In index, Out y) {
  const int64_t outer = x->size(0), n = x->size(2), k = index->size(0);
  if (y->numel() == 0 && index->numel() == 0) return;
  const Bounds bounds{"index_select", x->size(1), index_fault()};
  const int64_t bytes = n * static_cast<int64_t>(item_size(x->dtype()));
  const auto run = [&]<class Unit>() {
    const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
    int lanes = 1;
    while (lanes < kWarp && lanes < units) lanes *= 2;
    launch(select_rows<Unit>, {blocks_strided(outer * k * lanes, kThreads), kThreads},
           static_cast<const Unit*>(x->raw()), index->data<int64_t>(), static_cast<Unit*>(y->raw()),
           outer, k, units, lanes, bounds);
  };
  const auto fits = [&](size_t size) {
    return bytes % static_cast<int64_t>(size) == 0 && aligned_for(x->raw(), size) &&
           aligned_for(y->raw(), size);
  };
  if (fits(16)) return run.template operator()<uint4>();
  if (fits(8)) return run.template operator()<uint64_t>();
  if (fits(4)) return run.template operator()<uint32_t>();
  if (fits(2)) return run.template operator()<uint16_t>();
  run.template operator()<uint8_t>();
}

void index_add(In index, In source, InOut y) {
  const int64_t rows = y->size(1), k = index->size(0);
  require(k <= kLargestNumber && rows < kLargestNumber,
          "[index_add] {} places into {} rows: a CUDA kernel takes less than 2^32 of each", k,
          rows);
  const Bounds bounds{"index_add", rows, index_fault()};
  dispatch_floating(y->dtype(), "index_add", [&]<class T>() {
    if (k == 0) return;
    const Tensor order = sorted_numbers(RowOfPlace{index->data<int64_t>(), bounds}, k, y->device());
    add_sorted(order, source->data<T>(), y->data<T>(), y->size(0), rows, y->size(2));
  });
}

}  // namespace macgrad::cuda

// Copies with any strides between any dtypes, and fills. Contiguous conversions and fills read and
// write packs of up to 32 bytes per thread. A transposition goes through tiles in shared memory, so
// that both sides are read and written in whole lines.
#include <algorithm>

#include "macgrad/core/convert.h"
#include "macgrad/core/kernels/arrays.h"
#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"
#include "macgrad/cuda/pack.cuh"
#include "macgrad/cuda/strided.h"

namespace macgrad::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 32;
constexpr int kTileRows = 8;  // rows a block moves at a time; a thread moves kTile / kTileRows

template <class From, class To>
__global__ void copy_strided(const From* x, To* y, Strided<2> shape) {
  const auto count = static_cast<int64_t>(shape.count);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    int64_t at[2];
    shape.offsets(static_cast<uint32_t>(i), at);
    y[at[1]] = convert<To>(x[at[0]]);
  }
}

// The elements of a run that are moved as packs; those before and after them are moved singly.
struct Packs {
  int64_t head = 0, count = 0;
};

template <class From, class To>
constexpr int kLanes = static_cast<int>(std::min<size_t>(8,
                                                         32 / std::max(sizeof(From), sizeof(To))));

template <class From, class To, int lanes>
__global__ void convert_contiguous(const From* __restrict__ x, To* __restrict__ y, int64_t n,
                                   Packs packs) {
  for (int64_t i = thread_index(); i < packs.count; i += thread_count()) {
    const auto in = reinterpret_cast<const Packed<From, lanes>*>(x + packs.head)[i];
    Packed<To, lanes> out;
#pragma unroll
    for (int j = 0; j < lanes; ++j) out.v[j] = convert<To>(in.v[j]);
    reinterpret_cast<Packed<To, lanes>*>(y + packs.head)[i] = out;
  }
  const int64_t packed = packs.count * lanes;
  for (int64_t i = thread_index(); i < n - packed; i += thread_count()) {
    const int64_t at = i < packs.head ? i : i + packed;
    y[at] = convert<To>(x[at]);
  }
}

template <class Word, int lanes>
__global__ void fill_contiguous(Word* y, int64_t n, Packs packs, Word value) {
  Packed<Word, lanes> pack;
#pragma unroll
  for (int j = 0; j < lanes; ++j) pack.v[j] = value;
  for (int64_t i = thread_index(); i < packs.count; i += thread_count())
    reinterpret_cast<Packed<Word, lanes>*>(y + packs.head)[i] = pack;
  const int64_t packed = packs.count * lanes;
  for (int64_t i = thread_index(); i < n - packed; i += thread_count())
    y[i < packs.head ? i : i + packed] = value;
}

// The last two dimensions of `shape`: columns are consecutive in y and `x_column` apart in x, rows
// are consecutive in x and `y_row` apart in y; earlier dimensions are walked by blockIdx.y.
template <class T>
__global__ void copy_transposed(const T* x, T* y, Strided<2> shape) {
  T(*tile)[kTile + 1] = shared_memory<T[kTile + 1]>();
  const int row_dim = shape.rank - 2, column_dim = shape.rank - 1;
  const auto rows = static_cast<int64_t>(shape.extents[row_dim]);
  const auto columns = static_cast<int64_t>(shape.extents[column_dim]);
  const int64_t x_column = shape.strides[0][column_dim], y_row = shape.strides[1][row_dim];
  int64_t from = 0, to = 0;
  uint32_t outer = blockIdx.y;
  for (int d = row_dim - 1; d >= 0; --d) {
    const int64_t i = outer % shape.extents[d];
    outer /= shape.extents[d];
    from += i * shape.strides[0][d];
    to += i * shape.strides[1][d];
  }
  const int64_t tiles_across = (columns + kTile - 1) / kTile;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) / tiles_across * kTile;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) % tiles_across * kTile;
  const int across = static_cast<int>(threadIdx.x), down = static_cast<int>(threadIdx.y);
  for (int i = down; i < kTile; i += kTileRows) {
    const int64_t row = row0 + across, column = column0 + i;
    if (row < rows && column < columns) tile[i][across] = x[from + row + column * x_column];
  }
  __syncthreads();
  for (int i = down; i < kTile; i += kTileRows) {
    const int64_t row = row0 + i, column = column0 + across;
    if (row < rows && column < columns) y[to + row * y_row + column] = tile[across][i];
  }
}

// The offsets index `shape` at run time: without __grid_constant__ each thread would first copy it
// to local memory.
template <class Word>
__global__ void fill_strided(Word* y, const __grid_constant__ Strided<1> shape, Word value) {
  const auto count = static_cast<int64_t>(shape.count);
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    int64_t at[1];
    shape.offsets(static_cast<uint32_t>(i), at);
    y[at[0]] = value;
  }
}

// Packs of `lanes` elements of a run of n: they start where every operand is aligned to its pack.
// No packs when there is no such element.
template <int lanes, class... T>
Packs packs_of(int64_t n, const T*... operands) {
  const auto past_pack = [](const auto* p) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(p) / sizeof(*p) % lanes);
  };
  const std::array<int64_t, sizeof...(T)> past{past_pack(operands)...};
  if (std::ranges::any_of(past, [&](int64_t other) { return other != past[0]; })) return {};
  const int64_t head = std::min(n, (lanes - past[0]) % lanes);
  return {head, (n - head) / lanes};
}

// The bits of `value`; all elements of one size are filled alike.
template <class Word>
void fill_words(const Tensor& y, Word value) {
  constexpr int lanes = kPacked<Word>;
  const bool equal_bytes = value == static_cast<Word>(Word(0x0101010101010101) * (value & 0xff));
  auto* first = static_cast<Word*>(y.raw());
  for (const auto& [shape, start] : strided_parts<1>({&y})) {
    Word* to = first + start[0];
    const auto count = static_cast<int64_t>(shape.count);
    if (!shape.contiguous()) {
      launch(fill_strided<Word>, {blocks_strided(count, kThreads * 4), kThreads}, to, shape, value);
    } else if (equal_bytes) {
      CUDA_CHECK(cudaMemsetAsync(to, static_cast<int>(value & 0xff), sizeof(Word) * shape.count,
                                 stream()));
    } else {
      const Packs packs = packs_of<lanes>(count, to);
      launch(fill_contiguous<Word, lanes>, {blocks_strided(count, kThreads * lanes), kThreads}, to,
             count, packs, value);
    }
  }
}

// x consecutive along the last dimension but one, y along the last.
bool is_transposition(const Strided<2>& s) {
  if (s.rank < 2) return false;
  const int rows = s.rank - 2, columns = s.rank - 1;
  return s.strides[0][rows] == 1 && s.strides[1][columns] == 1 && s.strides[0][columns] > 1 &&
         s.extents[rows] >= 8 && s.extents[columns] >= 8;
}

template <class T>
bool launch_transposed(const T* x, T* y, const Strided<2>& s) {
  if (!is_transposition(s)) return false;
  const auto tiles = [](uint32_t n) { return (n + kTile - 1) / kTile; };
  const int64_t outer = int64_t{s.count} / s.extents[s.rank - 1] / s.extents[s.rank - 2];
  const int64_t blocks = int64_t{tiles(s.extents[s.rank - 1])} * tiles(s.extents[s.rank - 2]);
  if (outer > 65535) return false;  // the limit of blockIdx.y
  launch(copy_transposed<T>,
         {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(outer)), dim3(kTile, kTileRows),
          sizeof(T) * kTile * (kTile + 1)},
         x, y, s);
  return true;
}

}  // namespace

void copy(In x, Out y) {
  dispatch_any(x->dtype(), [&]<class From>() {
    const From* px = x->data<From>();
    dispatch_any(y->dtype(), [&]<class To>() {
      To* py = y->data<To>();
      for (const auto& [shape, start] : strided_parts<2>({&x.t, &y.t})) {
        const From* from = px + start[0];
        To* to = py + start[1];
        const auto count = static_cast<int64_t>(shape.count);
        if constexpr (std::is_same_v<To, From>) {
          if (shape.contiguous()) {
            CUDA_CHECK(cudaMemcpyAsync(to, from, sizeof(To) * shape.count, cudaMemcpyDeviceToDevice,
                                       stream()));
            continue;
          }
          if (launch_transposed(from, to, shape)) continue;
        } else if (shape.contiguous()) {
          constexpr int lanes = kLanes<From, To>;
          launch(convert_contiguous<From, To, lanes>,
                 {blocks_strided(count, kThreads * lanes), kThreads}, from, to, count,
                 packs_of<lanes>(count, from, to));
          continue;
        }
        launch(copy_strided<From, To>, {blocks_strided(count, kThreads * 4), kThreads}, from, to,
               shape);
      }
    });
  });
}

void fill(Out y, double value) {
  dispatch_any(y->dtype(), [&]<class T>() {
    T v;
    if constexpr (std::is_same_v<T, bool>) {
      v = value != 0;
    } else if constexpr (std::is_same_v<T, bfloat16>) {
      v = bfloat16(static_cast<float>(value));
    } else {
      v = static_cast<T>(value);
    }
    if constexpr (sizeof(T) == 1) fill_words(y, bit_copy<uint8_t>(v));
    if constexpr (sizeof(T) == 2) fill_words(y, bit_copy<uint16_t>(v));
    if constexpr (sizeof(T) == 4) fill_words(y, bit_copy<uint32_t>(v));
    if constexpr (sizeof(T) == 8) fill_words(y, bit_copy<uint64_t>(v));
  });
}

}  // namespace macgrad::cuda

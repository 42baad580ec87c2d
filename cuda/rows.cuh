// Rows of N columns shared out to teams of threads: several rows a warp, a warp a row, or a block a
// row. A short row stays in its team's registers; a long one goes through shared memory where it
// fits, so that kernels which look at a row two or three times read it from memory once. A thread
// meets the same columns in every pass over every row, so passes need no barriers between them.
//
// Shape letters: R rows, N columns. "Unit": `vec` consecutive elements, 16 bytes where everything
// is aligned, else one element.
#pragma once

#include <type_traits>
#include <utility>

#include "macgrad/cuda/device_code.cuh"
#include "macgrad/cuda/launch.h"

namespace macgrad::cuda {

template <class T, int vec>
struct alignas(sizeof(T) * vec) Unit {
  T v[vec];
};

inline constexpr int kShortTeams = 256;           // threads of a block whose teams lie in warps
inline constexpr int kLongTeam = 512;             // threads of a block with one row
inline constexpr size_t kTeamScratchBytes = 128;  // one double for each of 512/32 warps

/// `width` threads that work on one row.
template <int width_>
struct Team {
  static constexpr int width = width_;
  static constexpr bool whole_block = width > kWarp;
  static constexpr int threads = whole_block ? width : kShortTeams;  // of a block
  static constexpr int rows = threads / width;                       // a block has in hand at once

  __device__ Team()
      : member(static_cast<int>(threadIdx.x) % width), row(static_cast<int>(threadIdx.x) / width) {}

  /// Collectives: every thread of the block calls them, and every member gets the result.
  template <class C>
  __device__ C sum(C value) const {
    return reduce(value, Sum{});
  }
  template <class C>
  __device__ C max(C value) const {
    return reduce(value, Max{});
  }

  int member, row;

 private:
  template <class C, class Op>
  __device__ C reduce(C value, Op op) const {
    if constexpr (whole_block) return block_reduce<width>(value, shared_memory<C>(), op);
    constexpr int lanes = whole_block ? kWarp : width;
    return warp_reduce<lanes>(value, op);
  }
};

/// A row as one member of its team sees it. `per` units a member in registers; 0: any number, read
/// from memory in the first pass and from `cache` (absent: memory again) in later ones.
template <class T, int vec_, int width_, int per_>
class Row {
 public:
  static constexpr int vec = vec_;
  static constexpr int width = width_;
  static constexpr int per = per_;
  static constexpr bool in_registers = per > 0;
  static constexpr int slots = in_registers ? per : 1;
  using Index = std::conditional_t<in_registers, int, int64_t>;
  using Piece = Unit<T, vec>;

  /// n = 0 makes a row without columns, of which nothing is read.
  __device__ Row(const T* from, int64_t n, int member, void* cache = nullptr)
      : from_(reinterpret_cast<const Piece*>(from)),
        cache_(static_cast<Piece*>(cache)),
        units_(static_cast<Index>(n / vec)),
        member_(member) {
    if constexpr (in_registers) {
#pragma unroll
      for (int k = 0; k < per; ++k)
        pieces_[k] = member_ + k * width < units_ ? from_[member_ + k * width] : Piece{};
    }
  }

  /// f(k, column, values) for this member's units; k (below `slots`) is known when compiling.
  template <class F>
  __device__ void each(F f) {
    if constexpr (in_registers) {
#pragma unroll
      for (int k = 0; k < per; ++k) {
        const int unit = member_ + k * width;
        if (unit < units_) f(k, unit * vec, pieces_[k].v);
      }
    } else {
      const Piece* source = cached_ ? cache_ : from_;
      const bool keep = cache_ && !cached_;
      for (Index first = member_; first < units_; first += kAhead * width) {
        Piece pieces[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a)
          if (first + a * width < units_) pieces[a] = source[first + a * width];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
          const Index unit = first + a * width;
          if (unit >= units_) continue;
          if (keep) cache_[unit] = pieces[a];
          f(0, unit * vec, pieces[a].v);
        }
      }
      cached_ = cache_ != nullptr;
    }
  }

  /// f(k, column, values of a, values of b) over two rows of one length.
  template <class F>
  __device__ static void each_pair(Row& a, Row& b, F f) {
    if constexpr (in_registers) {
#pragma unroll
      for (int k = 0; k < per; ++k) {
        const int unit = a.member_ + k * width;
        if (unit < a.units_) f(k, unit * vec, a.pieces_[k].v, b.pieces_[k].v);
      }
    } else {
      const Piece* left = a.cached_ ? a.cache_ : a.from_;
      const Piece* right = b.cached_ ? b.cache_ : b.from_;
      const bool keep_left = a.cache_ && !a.cached_, keep_right = b.cache_ && !b.cached_;
      for (Index first = a.member_; first < a.units_; first += kAhead / 2 * width) {
        Piece one[kAhead / 2], two[kAhead / 2];
#pragma unroll
        for (int i = 0; i < kAhead / 2; ++i) {
          const Index unit = first + i * width;
          if (unit < a.units_) one[i] = left[unit], two[i] = right[unit];
        }
#pragma unroll
        for (int i = 0; i < kAhead / 2; ++i) {
          const Index unit = first + i * width;
          if (unit >= a.units_) continue;
          if (keep_left) a.cache_[unit] = one[i];
          if (keep_right) b.cache_[unit] = two[i];
          f(0, unit * vec, one[i].v, two[i].v);
        }
      }
      a.cached_ = a.cache_ != nullptr;
      b.cached_ = b.cache_ != nullptr;
    }
  }

 private:
  static constexpr int kAhead = 4;  // loads under way at once

  const Piece* from_;
  Piece* cache_;
  Index units_;
  int member_;
  bool cached_ = false;
  Piece pieces_[slots];
};

/// f(k, column) for a member's units of a row of n columns, when nothing is to be read.
template <class R, class F>
__device__ inline void each_column(int64_t n, int member, F f) {
  const auto units = static_cast<typename R::Index>(n / R::vec);
  if constexpr (R::in_registers) {
#pragma unroll
    for (int k = 0; k < R::per; ++k)
      if (member + k * R::width < units) f(k, (member + k * R::width) * R::vec);
  } else {
    for (typename R::Index unit = member; unit < units; unit += R::width) f(0, unit * R::vec);
  }
}

/// One unit, read or written at a column that begins one.
template <int vec, class T>
__device__ inline Unit<T, vec> get_unit(const T* row, int64_t column) {
  return *reinterpret_cast<const Unit<T, vec>*>(row + column);
}
template <int vec, class T>
__device__ inline void put_unit(T* row, int64_t column, const compute_t<T> (&values)[vec]) {
  Unit<T, vec> out;
#pragma unroll
  for (int j = 0; j < vec; ++j) store(&out.v[j], values[j]);
  *reinterpret_cast<Unit<T, vec>*>(row + column) = out;
}

/// Mean and variance of a row by the corrected two-pass algorithm, as in core/cpu/row_moments.h: of
/// equal values the mean is exact, and one that falls between two numbers of type C is kept in two.
template <class C>
struct RowMoments {
  C mean = 0;
  C correction = 0;  // the mean is mean + correction
  C squares = 0;     // Σ (x - mean)², of the corrected mean
};
/// `from`: the row in memory, nullptr for one without columns; share: 1/N.
template <class C, class R, class T, class Members>
__device__ inline RowMoments<C> row_moments(R& row, const Members& team, const T* from, C share) {
  const C first = from ? load(from) : C(0);
  C sum = 0, rest = 0, squares = 0;
  row.each([&](int, auto, const auto& in) {
#pragma unroll
    for (int j = 0; j < R::vec; ++j) sum += load(&in[j]) - first;
  });
  const C mean = first + team.sum(sum) * share;
  row.each([&](int, auto, const auto& in) {
#pragma unroll
    for (int j = 0; j < R::vec; ++j) {
      const C d = load(&in[j]) - mean;
      rest += d;
      squares += d * d;
    }
  });
  rest = team.sum(rest);
  const C correction = rest * share;
  return {mean, correction, team.sum(squares) - rest * correction};
}

/// Where in shared memory a long row's cache number `index` lies: after the team's scratch.
template <class T>
__device__ inline void* row_cache(int64_t n, int index, bool keep) {
  if (!keep) return nullptr;
  const int64_t bytes = (n * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
  return shared_memory<unsigned char>() + kTeamScratchBytes + index * bytes;
}

/// Shared memory of a long row's team: `caches` rows of `row_bytes`, and `more` bytes behind them,
/// as far as the card has it. N = 50,000 float32 columns take 200,000 of the 232,448 bytes of an
/// H100 or H200; at N = 10,000 four blocks of 512 threads (160,000 bytes) fill a multiprocessor.
struct TeamMemory {
  bool keep = false;       // the rows
  bool keep_more = false;  // and what `more` is for
  size_t bytes = 0;
};
inline TeamMemory team_memory(bool whole_block, int64_t row_bytes, int caches, size_t more = 0) {
  if (!whole_block) return {};
  const auto row = static_cast<size_t>((row_bytes + 15) / 16 * 16);
  TeamMemory m{false, false, kTeamScratchBytes};
  const auto take = [&](bool& flag, size_t bytes) {
    flag = m.bytes + bytes <= card().shared_bytes;
    if (flag) m.bytes += bytes;
  };
  take(m.keep, row * static_cast<size_t>(caches));
  if (more > 0) take(m.keep_more, more);
  return m;
}

inline bool aligned_to(const void* p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

/// Calls f.operator()<vec, width, per>() with the smallest team that holds N columns of T in
/// registers (at most 32 elements a thread), else a block that streams (per = 0). `aligned`: every
/// row of every operand begins at a multiple of 16 bytes.
template <class T, class F>
void dispatch_rows(int64_t n, bool aligned, F&& f) {
  constexpr int full = static_cast<int>(16 / sizeof(T));
  if (aligned && n % full == 0) {
    const int64_t units = n / full;
    if (units <= 8) return f.template operator()<full, 8, 1>();
    if (units <= 16) return f.template operator()<full, 16, 1>();
    if (units <= 32) return f.template operator()<full, 32, 1>();
    if (units <= 128) return f.template operator()<full, 32, 4>();
    if constexpr (full * 8 <= 32) {
      if (units <= 256) return f.template operator()<full, 32, 8>();
    }
    return f.template operator()<full, kLongTeam, 0>();
  }
  if (n <= 32) return f.template operator()<1, 32, 1>();
  if (n <= 256) return f.template operator()<1, 32, 8>();
  return f.template operator()<1, kLongTeam, 0>();
}

/// The same for contiguous operands with rows of n columns.
template <class T>
bool rows_aligned(int64_t n, std::initializer_list<const T*> operands) {
  bool all = n * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  for (const T* p : operands) all = all && aligned_to(p, 16);
  return all;
}

}  // namespace macgrad::cuda

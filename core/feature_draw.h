// Random Maclaurin features drawn: degrees and signs as functions of a DrawKey, in one text for
// the host and for devices, so that both draw the same bits. What the numbers mean: nn/README.md
// and nn/maclaurin_draw.h. A Team is who works on a draw together: one thread on the host (Alone),
// a block of threads on a device.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/rmfa.h"

namespace macgrad {

/// A team of one.
struct Alone {
  static constexpr int64_t rank() { return 0; }
  static constexpr int64_t size() { return 1; }
  static constexpr void sync() {}
};

/// Smallest power of two >= n.
MACGRAD_HD inline int64_t hadamard_size(int64_t n) {
  int64_t size = 1;
  while (size < n) size *= 2;
  return size;
}

MACGRAD_HD inline bool odd_bits(int64_t bits) {
#if defined(__CUDA_ARCH__)
  return (__popcll(bits) & 1) != 0;
#else
  return (std::popcount(static_cast<uint64_t>(bits)) & 1) != 0;
#endif
}

/// The degree of a feature of the tail, less the smallest one, for v in (0, 1]: the largest i with
/// P[N >= i] >= v, where P[N >= i] = survival[i]/survival[0], falling, i < count.
MACGRAD_HD inline int64_t tail_degree(const double* survival, int64_t count, double v) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (survival[middle] / survival[0] >= v) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 ? low - 1 : 0;
}

/// v of feature k of a tail of `count`. Systematic: equally spaced from one random start; else
/// independent. The first tail_numbers() numbers of the draw.
MACGRAD_HD inline double tail_level(const DrawKey& key, bool systematic, int64_t k, int64_t count) {
  const auto at = static_cast<uint64_t>(systematic ? 0 : 2 * k);
  const double level = 1.0 - uniform_from_bits(random_bits(key, at), random_bits(key, at + 1));
  return systematic ? (static_cast<double>(k) + level) / static_cast<double>(count) : level;
}
MACGRAD_HD inline uint64_t tail_numbers(bool systematic, int64_t count) {
  return static_cast<uint64_t>(count == 0 ? 0 : systematic ? 2 : 2 * count);
}

/// Where the features of each degree 0 … largest lie among features in falling order of degree,
/// counting only those with a projection. Arrays of largest + 1.
struct DegreeGroups {
  int64_t largest = 0;
  int64_t* count = nullptr;   // features of the degree; [0] = 0
  int64_t* start = nullptr;   // the first one; [l] is also how many have a degree above l
  int64_t* before = nullptr;  // projections of the features before it
  int64_t* column = nullptr;  // [l]: first column of Ω of level l

  /// The rest from `count`.
  MACGRAD_HD void complete() const {
    int64_t features = 0, projections = 0, columns = 0;
    for (int64_t n = largest; n >= 0; --n) {
      start[n] = features;
      before[n] = projections;
      features += count[n];
      projections += n * count[n];
    }
    for (int64_t l = 0; l <= largest; ++l) {
      column[l] = columns;
      columns += start[l];
    }
  }
  MACGRAD_HD int64_t features() const { return start[0]; }
  MACGRAD_HD int64_t projections() const { return before[0]; }
};

/// Numbers of a draw one after the other: single signs, 32 to a number, and permutations between
/// them, which take whole numbers.
class SignStream {
 public:
  MACGRAD_HD SignStream(const DrawKey& key, uint64_t first) : numbers_(key, first) {}
  MACGRAD_HD void signs(int8_t* out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      if (left_ == 0) {
        bits_ = numbers_.bits();
        left_ = 32;
      }
      out[i] = (bits_ >> 31) != 0 ? 1 : -1;
      bits_ <<= 1;
      --left_;
    }
  }
  MACGRAD_HD void permutation(int32_t* out, int64_t n) { numbers_.permutation(out, n); }

 private:
  DrawReader numbers_;
  uint32_t bits_ = 0;
  int left_ = 0;
};

/// Memory of one set of Hadamard blocks, seen by the whole team.
struct HadamardRoom {
  int8_t* signs = nullptr;   // (d)
  int32_t* order = nullptr;  // (hadamard_size(d))
};

/// Sign vectors of `count` features of one degree from Hadamard blocks of hadamard_size(d) rows,
/// cut to d entries, handed to emit(feature, factor, i, minus). Every factor and every set of
/// blocks has signs and a permutation of its own. SignDesign::blocks: a set is one block;
/// shifted_blocks: a set is hadamard_size(d) blocks, and block b shifts factor j by j·b rows. The
/// source gives signs(int8_t*, n) and permutation(int32_t*, n), to rank 0 alone.
template <class Source, class Team, class Emit>
MACGRAD_HD void hadamard_rows(int64_t d, int64_t degree, int64_t count, SignDesign design,
                              Source& source, const HadamardRoom& room, const Team& team,
                              const Emit& emit) {
  const int64_t size = hadamard_size(d);
  int log_size = 0;
  while ((int64_t{1} << log_size) < size) ++log_size;
  // The first factor is never shifted: for degree 1 every block is a set.
  const int64_t blocks_in_set = design == SignDesign::shifted_blocks && degree > 1 ? size : 1;
  const int64_t set = blocks_in_set * size;
  for (int64_t begin = 0; begin < count; begin += set) {
    const int64_t n = begin + set < count ? set : count - begin;
    for (int64_t j = 0; j < degree; ++j) {
      if (team.rank() == 0) {
        source.signs(room.signs, d);
        // A single row needs no order: its signs alone make it uniform.
        room.order[0] = 0;
        if (n > 1) source.permutation(room.order, size);
      }
      team.sync();
      // Element (f, i), features first: neighbours in Ω.
      for (int64_t f = team.rank(), i = 0; i < d; f += team.size()) {
        while (f >= n) {
          f -= n;
          ++i;
        }
        if (i >= d) break;
        const int64_t row = room.order[(f + j * (f >> log_size)) & (size - 1)];
        emit(begin + f, j, i, odd_bits(row & i) != (room.signs[i] < 0));
      }
      team.sync();
    }
  }
}

/// Ω (H, d, ld) of a draw: +1 and -1 in its columns, whose order is that of RmfaArgs. `first`: the
/// number of the draw at which the signs begin.
template <class T, class Team>
MACGRAD_HD void draw_omega(int64_t d, int64_t heads, SignDesign design, const DegreeGroups& groups,
                           const DrawKey& key, uint64_t first, const HadamardRoom& room,
                           const Team& team, T* omega, int64_t ld) {
  const T minus_one = static_cast<T>(-1.0f), one = static_cast<T>(1.0f);
  if (design != SignDesign::independent) {
    SignStream stream(key, first);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t n = groups.largest; n > 0; --n)
        hadamard_rows(
            d, n, groups.count[n], design, stream, room, team,
            [&](int64_t feature, int64_t factor, int64_t i, bool minus) {
              omega[(h * d + i) * ld + groups.column[factor] + groups.start[n] + feature] =
                  minus ? minus_one : one;
            });
    return;
  }
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t n = groups.largest; n > 0; --n) {
      const int64_t count = groups.count[n];
      for (int64_t at = team.rank(); at < count * n; at += team.size()) {
        const int64_t f = at % count, j = at / count;
        T* const column = omega + h * d * ld + groups.column[j] + groups.start[n] + f;
        auto sign =
            static_cast<uint64_t>((h * groups.projections() + groups.before[n] + f * n + j) * d);
        Philox4 four{};
        for (int64_t i = 0; i < d; ++i, ++sign) {
          const uint64_t number = first + sign / 32;
          if (i == 0 || (sign % 32 == 0 && number % 4 == 0))
            four = random_block(key, static_cast<uint32_t>(number / 4));
          const bool plus = ((four.v[number % 4] << (sign % 32)) >> 31) != 0;
          column[i * ld] = plus ? one : minus_one;
        }
      }
    }
}

/// Entries of a law (kernels::draw_features).
inline constexpr int64_t kLawDegrees = kRmfaLayoutLevels + 1;
inline constexpr int64_t kLawWeights = kLawDegrees, kLawTail = 2 * kLawDegrees;

/// What kernels::draw_features works on for one map.
template <class T>
struct FeatureDrawOperands {
  FeatureDrawArgs args;
  const double* law = nullptr;
  T* omega = nullptr;
  T* weight = nullptr;
  double* layout = nullptr;
  int64_t law_size = 0, heads = 1, width = 0, features = 0;  // P', M'
};

/// Memory of one draw, seen by the whole team: groups of kRmfaLayoutLevels, the degrees of the
/// tail.
struct FeatureDrawRoom {
  DegreeGroups groups;
  HadamardRoom hadamard;
  int32_t* tail = nullptr;  // (tail_count)
};

/// Groups of degrees up to kRmfaLayoutLevels in 4·kLawDegrees numbers.
MACGRAD_HD inline DegreeGroups degree_groups(int64_t* room) {
  return {kRmfaLayoutLevels, room, room + kLawDegrees, room + 2 * kLawDegrees,
          room + 3 * kLawDegrees};
}

/// One draw. One that is too large for omega and weight is not made: constant is NaN then, and the
/// levels are 0.
template <class T, class Team>
MACGRAD_HD void draw_law(const FeatureDrawOperands<T>& to, const FeatureDrawRoom& room,
                         const Team& team) {
  const FeatureDrawArgs& args = to.args;
  const DegreeGroups& groups = room.groups;
  const double* const weights = to.law + kLawWeights;
  for (int64_t k = team.rank(); k < args.tail_count; k += team.size())
    room.tail[k] = static_cast<int32_t>(
        args.tail_from + tail_degree(to.law + kLawTail, to.law_size - kLawTail,
                                     tail_level(args.key, args.systematic, k, args.tail_count)));
  for (int64_t at = team.rank(); at < to.heads * args.head_dim * to.width; at += team.size())
    to.omega[at] = static_cast<T>(0.0f);
  team.sync();
  for (int64_t n = team.rank(); n < kLawDegrees; n += team.size()) {
    auto count = static_cast<int64_t>(to.law[n]);
    for (int64_t k = 0; k < args.tail_count; ++k) count += room.tail[k] == n;
    groups.count[n] = weights[n] >= 0.0 ? count : 0;
  }
  team.sync();
  if (team.rank() == 0) {
    double constant = args.constant;
    for (int64_t k = 0; k < groups.count[0]; ++k) constant += weights[0];
    groups.count[0] = 0;
    groups.complete();
    to.layout[0] = constant;
    to.layout[1] = args.linear;
    to.layout[kRmfaLayoutScale] = args.logit_scale;
  }
  team.sync();
  const bool fits = groups.projections() <= to.width && groups.features() <= to.features;
  for (int64_t l = team.rank(); l < kRmfaLayoutLevels; l += team.size())
    to.layout[kRmfaLayoutHeader + l] = fits ? static_cast<double>(groups.start[l]) : 0.0;
  if (!fits) {
    if (team.rank() == 0) to.layout[0] = bit_copy<double>(~uint64_t{0});
    return;
  }
  for (int64_t m = team.rank(); m < to.features; m += team.size()) {
    int64_t n = groups.largest;
    while (n > 0 && m >= groups.start[n] + groups.count[n]) --n;
    to.weight[m] = static_cast<T>(static_cast<compute_t<T>>(n > 0 ? weights[n] : 0.0));
  }
  draw_omega(args.head_dim, to.heads, args.design, groups, args.key,
             tail_numbers(args.systematic, args.tail_count), room.hadamard, team, to.omega,
             to.width);
}

/// Whether the lists of kernels::draw_features go together. Throws an Error that names the map.
inline void check_feature_draws(InList laws, InOutList omegas, InOutList weights, InOutList layouts,
                                const std::vector<FeatureDrawArgs>& args) {
  for (size_t i = 0; i < args.size(); ++i) {
    const Tensor &law = laws.list[i], &omega = omegas.list[i], &weight = weights.list[i],
                 &layout = layouts.list[i];
    require(law.dtype() == DType::float64 && law.numel() >= kLawTail + (args[i].tail_count > 0) &&
                layout.dtype() == DType::float64 && layout.numel() == kRmfaLayout &&
                weight.dtype() == omega.dtype() && weight.rank() == 1 &&
                (omega.rank() == 2 || omega.rank() == 3) && omega.size(-2) == args[i].head_dim &&
                args[i].tail_from >= 0 && args[i].tail_count >= 0,
            "[draw_features] map {}: law {} {}, omega {} {}, weight {} {}, layout {} {} do not "
            "belong to a draw of {} features of head dimension {}",
            i, name(law.dtype()), law.shape(), name(omega.dtype()), omega.shape(),
            name(weight.dtype()), weight.shape(), name(layout.dtype()), layout.shape(),
            args[i].tail_count, args[i].head_dim);
  }
}

template <class T>
FeatureDrawOperands<T> feature_draw_operands(const Tensor& law, const Tensor& omega,
                                             const Tensor& weight, const Tensor& layout,
                                             const FeatureDrawArgs& args) {
  return {args,
          law.data<double>(),
          omega.data<T>(),
          weight.data<T>(),
          layout.data<double>(),
          law.numel(),
          omega.rank() == 3 ? omega.size(0) : 1,
          omega.size(-1),
          weight.numel()};
}

}  // namespace macgrad

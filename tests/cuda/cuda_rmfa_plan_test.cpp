// How RMFA is cut on the card (cuda/rmfa_plan.h): features into chunks, sequences into ranges, and
// the bounds that recorded steps rely on.
#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "macgrad/core/generator.h"
#include "macgrad/core/kernels/rmfa.h"
#include "macgrad/cuda/rmfa_memory.h"

namespace macgrad::testing {
namespace {

RmfaArgs draw_of(std::vector<int64_t> levels, double linear = 0.0) {
  RmfaArgs args;
  args.levels = std::move(levels);
  args.constant = 1.0;
  args.linear = linear;
  return args;
}

int64_t projections_of(const std::vector<int64_t>& levels) {
  return std::accumulate(levels.begin(), levels.end(), int64_t{0});
}
int64_t features_of(const std::vector<int64_t>& levels) {
  return levels.empty() ? 0 : levels[0];
}

TEST_CASE("rmfa plan: chunks hold every feature once and no more projections than fit") {
  using namespace cuda::rmfa;
  const std::vector<std::vector<int64_t>> draws = {{},
                                                   {1},
                                                   {64},
                                                   {65},
                                                   {70, 30, 30, 7, 1},
                                                   {128, 64, 32, 16, 8, 4, 2, 1},
                                                   std::vector<int64_t>(64, 3),
                                                   std::vector<int64_t>(5, 300),
                                                   {1000, 400, 200, 100, 50, 20, 3},
                                                   {40000, 1}};
  for (const auto& levels : draws) {
    for (const bool causal : {false, true}) {
      RmfaArgs args = draw_of(levels, 0.5);
      args.causal = causal;
      CHECK(refusal(args, 64, 64, true) == "");
      const int most = most_columns(causal);
      const int64_t P = projections_of(levels), M = features_of(levels);
      const Draw draw = make_draw(args);
      int begin, end;
      const int random = M == 0 ? 0 : cut_features(draw, most, -1, begin, end);
      CHECK(make_map(args, 100, 64, P, M).chunks == random + 2);  // of 100 dimensions
      CHECK(random <= most_chunks(M, P, most));
      args.layout = Tensor::zeros({kRmfaLayout}, DType::float64);
      CHECK(make_map(args, 100, 64, P, M).chunks >= random + 2);
      int at = 0;
      for (int c = 0; c < random + 2; ++c) {
        Chunk chunk;
        CHECK(fill_chunk(draw, 100, most, c, chunk, 0, 1) == random + 2);
        if (c >= random) {
          CHECK(chunk.linear);
          CHECK(chunk.first == (c - random) * kTile);
          CHECK(chunk.count == (c == random ? 64 : 36));
          CHECK(chunk.columns == 0);
          continue;
        }
        CHECK_FALSE(chunk.linear);
        CHECK(chunk.first == at);
        CHECK(chunk.count > 0);
        CHECK(chunk.count <= kTile);
        CHECK(chunk.columns <= most);
        at += chunk.count;
        // Full, or the last.
        const int next = at < M ? static_cast<int>(std::count_if(levels.begin(), levels.end(),
                                                                 [&](int64_t n) { return n > at; }))
                                : 0;
        CHECK((at == M || chunk.count == kTile || chunk.columns + next > most));
        for (int m = 0; m < chunk.count; ++m) {
          int degree = 0;
          int64_t first = 0;
          for (int64_t n : levels) {
            if (n <= chunk.first + m) break;
            REQUIRE(chunk.column[chunk.offset[degree] + m] == first + chunk.first + m);
            first += n;
            ++degree;
          }
          REQUIRE(chunk.degree[m] == degree);
        }
      }
      CHECK(at == M);
    }
  }
  CHECK(refusal(draw_of(std::vector<int64_t>(65, 1)), 4, 4, false) != "");
  CHECK(refusal(draw_of({4}), 129, 4, false) != "");
}

TEST_CASE("rmfa plan: no draw within its bounds has more chunks than the bounds say") {
  using namespace cuda::rmfa;
  DrawReader random(DrawKey{3, 1, 0, 0});
  for (int i = 0; i < 2000; ++i) {
    // Degrees of all sizes, most of them small or most of them large.
    const auto features = 1 + static_cast<int64_t>(random.below(300));
    const uint64_t spread = 1 + random.below(kMaxLevels);
    std::vector<int64_t> levels(kMaxLevels, 0);
    for (int64_t m = 0; m < features; ++m) {
      const auto degree = 1 + random.below(spread);
      for (uint64_t l = 0; l < degree; ++l) ++levels[l];
    }
    for (const bool causal : {false, true}) {
      int begin, end;
      const int chunks =
          cut_features(make_draw(draw_of(levels)), most_columns(causal), -1, begin, end);
      REQUIRE(chunks <= most_chunks(features, projections_of(levels), most_columns(causal)));
    }
  }
}

TEST_CASE("rmfa plan: ranges cover every token once, whatever the card's size") {
  const auto map = cuda::rmfa::make_map(draw_of({8, 4}), 8, 8, 12, 8);
  for (const int64_t heads : {1, 3, 1000}) {
    for (const int64_t Tn : {0, 1, 64, 65, 1000}) {
      for (const int64_t S : {0, 1, 63, 1000, 5000}) {
        for (const bool causal : {false, true}) {
          const cuda::rmfa::Cut cut(map, heads, Tn, S, causal);
          const auto covered = [](const cuda::rmfa::Ranges& ranges, int count) {
            int64_t at = 0, begin, end;
            for (int i = 0; i < count; ++i) {
              ranges.get(i, begin, end);
              CHECK((begin == at || begin == end));
              at = std::max(at, end);
            }
            return at;
          };
          CHECK(covered(cut.queries, cut.queries.count()) == Tn);
          if (!causal) {
            CHECK(covered(cut.keys, cut.keys.count()) == S);
            continue;
          }
          CHECK(cut.first_segment + cut.segments == cut.keys.count());
          // The state of a segment holds the keys before its first query's tile.
          for (int i = 0; i < cut.segments; ++i) {
            const int64_t before = std::clamp<int64_t>(i * cut.length + S - Tn, 0, S);
            CHECK(covered(cut.keys, cut.first_segment + i + 1) == before);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace macgrad::testing

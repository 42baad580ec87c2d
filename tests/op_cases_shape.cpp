// Rows of the ops that rearrange, cut, join and index.

#include "macgrad/tests/op_cases.h"

namespace macgrad::testing {
namespace {

// y[i] = x[source(i)] for `count` results; a negative source gives `other`.
Reference picked(size_t count, std::function<int64_t(int64_t)> source, double other = 0.0) {
  return [=](const Values& x) {
    std::vector<double> y;
    for (size_t i = 0; i < count; ++i) {
      const int64_t from = source(static_cast<int64_t>(i));
      y.push_back(from < 0 ? other : x[0][static_cast<size_t>(from)]);
    }
    return y;
  };
}

int64_t same(int64_t i) {
  return i;
}

const Shape kShape{2, 3, 4};

void add_views(OpCases& cases) {
  cases.push_back(simple(
      "reshape", "reshape", {{kShape}},
      [](const Variables& x) {
        return reshape(x[0], {4, -1});
      },
      picked(24, same)));
  cases.push_back(simple(
      "reshape of a permutation", "reshape", {{kShape}},
      [](const Variables& x) {
        return reshape(permute(x[0], {2, 0, 1}), {24});
      },
      picked(24, [](int64_t i) { return i % 6 * 4 + i / 6; })));
  cases.push_back(simple(
      "permute", "permute", {{kShape}},
      [](const Variables& x) {
        return permute(x[0], {1, -1, 0});
      },
      picked(24, [](int64_t i) { return i % 2 * 12 + i / 8 * 4 + i / 2 % 4; })));
  cases.push_back(simple(
      "transpose", "transpose", {{kShape}},
      [](const Variables& x) { return transpose(x[0], 0, -1); },
      picked(24, [](int64_t i) { return i % 2 * 12 + i / 2 % 3 * 4 + i / 6; })));
  cases.push_back(simple(
      "expand", "expand", {{{3, 1}}},
      [](const Variables& x) {
        return expand(x[0], {2, 3, 4});
      },
      picked(24, [](int64_t i) { return i / 4 % 3; })));
  cases.push_back(simple(
      "unsqueeze", "unsqueeze", {{kShape}},
      [](const Variables& x) { return unsqueeze(unsqueeze(x[0], -1), 1); }, picked(24, same)));
  cases.push_back(simple(
      "squeeze", "squeeze", {{{2, 1, 3}}}, [](const Variables& x) { return squeeze(x[0], -2); },
      picked(6, same)));
  cases.push_back(simple(
      "contiguous", "contiguous", {{{3, 4}}},
      [](const Variables& x) { return contiguous(transpose(x[0], 0, 1)); },
      picked(12, [](int64_t i) { return i % 3 * 4 + i / 3; })));
  cases.push_back(simple(
      "slice", "slice", {{kShape}}, [](const Variables& x) { return slice(x[0], 1, 1, 3); },
      picked(16, [](int64_t i) { return i / 8 * 12 + 4 + i % 8; })));
  OpCase row = simple(
      "slice step", "slice", {{{2, 7}}},
      [](const Variables& x) { return slice(x[0], -1, 1, 6, 2); },
      picked(6, [](int64_t i) { return i / 3 * 7 + 1 + i % 3 * 2; }));
  cases.push_back(row);
  row = simple("slice of odd sizes", "slice", {{{2, 7}}}, [](const Variables& x) {
    return slice(x[0], 1, x[0].size(1) / 2, x[0].size(1), 3);
  });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{2, n}}}; };
  cases.push_back(row);
  cases.push_back(simple(
      "slice empty", "slice", {{{2, 7}}}, [](const Variables& x) { return slice(x[0], 1, 7, 7); },
      picked(0, same)));
  cases.push_back(simple(
      "select", "select", {{kShape}}, [](const Variables& x) { return select(x[0], 1, 2); },
      picked(8, [](int64_t i) { return i / 4 * 12 + 8 + i % 4; })));
}

void add_joins(OpCases& cases) {
  OpCase row = simple(
      "concat", "concat", {{{2, 3}}, {{2, 0}}, {{2, 2}}},
      [](const Variables& x) {
        return concat({x[0], x[1], x[2], x[0]}, -1);
      },
      [](const Values& x) {
        std::vector<double> y;
        for (size_t r = 0; r < 2; ++r) {
          for (size_t c = 0; c < 3; ++c) y.push_back(x[0][r * 3 + c]);
          for (size_t c = 0; c < 2; ++c) y.push_back(x[2][r * 2 + c]);
          for (size_t c = 0; c < 3; ++c) y.push_back(x[0][r * 3 + c]);
        }
        return y;
      });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{2, n}}, {{2, 1}}, {{2, 3}}}; };
  cases.push_back(row);
  cases.push_back(simple(
      "stack", "stack", {{{2, 3}}, {{2, 3}}},
      [](const Variables& x) {
        return stack({x[0], x[1]}, 1);
      },
      [](const Values& x) {
        std::vector<double> y;
        for (size_t r = 0; r < 2; ++r)
          for (size_t p = 0; p < 2; ++p)
            for (size_t c = 0; c < 3; ++c) y.push_back(x[p][r * 3 + c]);
        return y;
      }));
  cases.push_back(simple(
      "split", "split", {{{2, 6}}},
      [](const Variables& x) {
        const Variables parts = split(x[0], {1, 0, 3, 2}, 1);
        return concat({parts[3], parts[1], 2.0 * parts[0], parts[2]}, 1);
      },
      [](const Values& x) {
        std::vector<double> y;
        for (size_t r = 0; r < 2; ++r) {
          const double* p = x[0].data() + r * 6;
          y.insert(y.end(), {p[4], p[5], 2 * p[0], p[1], p[2], p[3]});
        }
        return y;
      }));
  row = simple(
      "pad", "pad", {{{2, 3}}}, [](const Variables& x) { return pad(x[0], 1, 2, 1, -0.5); },
      picked(
          12,
          [](int64_t i) {
            const int64_t c = i % 6 - 2;
            return c < 0 || c > 2 ? -1 : i / 6 * 3 + c;
          },
          -0.5));
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{2, n}}}; };
  cases.push_back(row);
}

}  // namespace

void add_shape_cases(OpCases& cases) {
  add_views(cases);
  add_joins(cases);
}

void add_index_cases(OpCases& cases) {
  // Random indices repeat; a place that is hit twice receives both.
  const auto places = [](const Shape& shape, int64_t below) {
    return random_index(shape, below, 30);
  };
  for (const int dim : {0, 1}) {
    const Shape shape{4, 3};
    const Shape chosen = shape.with(dim, 5);
    const auto index = [=] { return places(chosen, shape[dim]); };
    // Place in x of element i of the index.
    const auto place = [=](const std::vector<int64_t>& at, size_t i) {
      const size_t columns = static_cast<size_t>(chosen[1]);
      return dim == 0 ? static_cast<size_t>(at[i]) * 3 + i % columns
                      : i / columns * 3 + static_cast<size_t>(at[i]);
    };
    OpCase row = simple(
        fmt::format("gather dim {}", dim), "gather", {{shape}},
        [=](const Variables& x) { return gather(x[0], dim, index()); },
        [=](const Values& x) {
          const auto at = index().to_vector<int64_t>();
          std::vector<double> y;
          for (size_t i = 0; i < at.size(); ++i) y.push_back(x[0][place(at, i)]);
          return y;
        });
    cases.push_back(row);
    cases.push_back(simple(
        fmt::format("scatter_add dim {}", dim), "scatter_add", {{shape}, {chosen}},
        [=](const Variables& x) { return scatter_add(x[0], dim, index(), x[1]); },
        [=](const Values& x) {
          const auto at = index().to_vector<int64_t>();
          std::vector<double> y = x[0];
          for (size_t i = 0; i < at.size(); ++i) y[place(at, i)] += x[1][i];
          return y;
        }));
    const auto list = [=] { return places({5}, shape[dim]); };
    const auto line = [=](const std::vector<int64_t>& at, size_t i) {
      const size_t columns = static_cast<size_t>(chosen[1]);
      return dim == 0 ? static_cast<size_t>(at[i / columns]) * 3 + i % columns
                      : i / columns * 3 + static_cast<size_t>(at[i % columns]);
    };
    cases.push_back(simple(
        fmt::format("index_select dim {}", dim), "index_select", {{shape}},
        [=](const Variables& x) { return index_select(x[0], dim, list()); },
        [=](const Values& x) {
          const auto at = list().to_vector<int64_t>();
          std::vector<double> y;
          for (size_t i = 0; i < static_cast<size_t>(chosen.numel()); ++i)
            y.push_back(x[0][line(at, i)]);
          return y;
        }));
    cases.push_back(simple(
        fmt::format("index_add dim {}", dim), "index_add", {{shape}, {chosen}},
        [=](const Variables& x) { return index_add(x[0], dim, list(), x[1]); },
        [=](const Values& x) {
          const auto at = list().to_vector<int64_t>();
          std::vector<double> y = x[0];
          for (size_t i = 0; i < x[1].size(); ++i) y[line(at, i)] += x[1][i];
          return y;
        }));
  }
  OpCase row = simple("gather of odd sizes", "gather", {{{7, 2}}}, [places](const Variables& x) {
    const int64_t n = x[0].size(0);
    return gather(x[0], 0, places({n, 2}, std::max<int64_t>(n, 1)));
  });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{n, 2}}}; };
  cases.push_back(row);
  row = simple(
      "embedding", "embedding", {{{5, 3}}},
      [places](const Variables& x) {
        return embedding(x[0], places({2, 4}, x[0].size(0)));
      },
      [places](const Values& x) {
        std::vector<double> y;
        for (const int64_t i : places({2, 4}, 5).to_vector<int64_t>())
          for (size_t c = 0; c < 3; ++c) y.push_back(x[0][static_cast<size_t>(i) * 3 + c]);
        return y;
      });
  row.sized = [](int64_t n) { return std::vector<OpInput>{{{5, n}}}; };
  cases.push_back(row);
  cases.push_back(simple(
      "embedding of no tokens", "embedding", {{{5, 3}}},
      [](const Variables& x) {
        return embedding(x[0], placed(Tensor::empty({2, 0}, DType::int64)));
      },
      [](const Values&) { return std::vector<double>{}; }));
}

}  // namespace macgrad::testing

// Beam search over a batch of sentences. A step advances all hypotheses of all open sentences as
// one batch; sentences that are done leave it.
#include "macgrad/nn/decoding.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "macgrad/autograd/ops.h"

namespace macgrad::nn {
namespace {

struct Candidate {
  double score;        // of the hypothesis and the token
  int64_t hypothesis;  // of the sentence
  int64_t token;
};

// Highest score first; ties in a fixed order.
bool before(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  return a.hypothesis != b.hypothesis ? a.hypothesis < b.hypothesis : a.token < b.token;
}

// Places of the `count` largest values of a row, largest first, the earlier of equals first. NaN
// and -inf are passed over. One pass over the row: where no value of a block is above the smallest
// in hand, as in nearly all, the block costs a vector comparison.
template <class T>
void largest_places(std::span<const T> row, size_t count, std::vector<int64_t>& places) {
  constexpr size_t kBlock = 64;
  places.clear();
  T bar = -std::numeric_limits<T>::infinity();
  for (size_t start = 0; start < row.size(); start += kBlock) {
    const std::span<const T> block = row.subspan(start, std::min(kBlock, row.size() - start));
    int above = 0;
    for (const T x : block) above |= x > bar;
    if (above == 0) continue;
    for (size_t i = 0; i < block.size(); ++i) {
      if (!(block[i] > bar)) continue;
      if (places.size() == count) places.pop_back();
      const auto at = std::find_if(places.begin(), places.end(), [&](int64_t place) {
        return row[static_cast<size_t>(place)] < block[i];
      });
      places.insert(at, static_cast<int64_t>(start + i));
      if (places.size() == count) bar = row[static_cast<size_t>(places.back())];
    }
  }
}

// A sentence that is not done.
struct Search {
  Search(size_t index, int64_t longest) : sentence(index), limit(longest) {}
  size_t sentence;  // in the order asked for
  int64_t limit;    // tokens without the end
  bool done = false;
  std::vector<Hypothesis> open{Hypothesis{}};  // scores are sums of log p
  std::vector<int64_t> parents;                // open[i] goes on from hypothesis parents[i]
};

class BeamSearch {
 public:
  BeamSearch(const SpecialTokens& special, const SearchSettings& settings)
      : special_(special), settings_(settings) {}

  // One step of one sentence; `rows` are the log-probabilities (hypotheses, V) of its next tokens.
  template <class T>
  void step(Search& s, std::span<const T> rows, std::vector<Hypothesis>& finished) {
    const size_t V = rows.size() / s.open.size();
    const auto beam = static_cast<size_t>(settings_.beam);
    const auto length = static_cast<int64_t>(s.open.front().tokens.size());
    // Every hypothesis can end, so twice the beam always holds a beam of open ones.
    const size_t wanted = 2 * beam;
    candidates_.clear();
    for (size_t h = 0; h < s.open.size(); ++h) {
      const std::span<const T> row = rows.subspan(h * V, V);
      const auto offer = [&](int64_t token) {
        const double score = s.open[h].score + static_cast<double>(row[static_cast<size_t>(token)]);
        if (score > -std::numeric_limits<double>::infinity())
          candidates_.push_back({score, static_cast<int64_t>(h), token});
      };
      if (length == s.limit) {
        offer(special_.end);
        continue;
      }
      largest_places(row, wanted + special_.never.size(), places_);
      for (const int64_t token : places_)
        if (std::find(special_.never.begin(), special_.never.end(), token) == special_.never.end())
          offer(token);
    }
    const size_t kept = std::min(wanted, candidates_.size());
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(kept),
                      candidates_.end(), before);
    // nn/README.md, equation (27)
    const double norm = std::pow(static_cast<double>(length + 1), settings_.length_penalty);
    std::vector<Hypothesis> open;
    s.parents.clear();
    for (size_t rank = 0; rank < kept; ++rank) {
      const Candidate& c = candidates_[rank];
      const std::vector<int64_t>& tokens = s.open[static_cast<size_t>(c.hypothesis)].tokens;
      if (c.token == special_.end) {
        if (rank < beam && finished.size() < beam) finished.push_back({tokens, c.score / norm});
      } else if (open.size() < beam) {
        open.push_back({tokens, c.score});
        open.back().tokens.push_back(c.token);
        s.parents.push_back(c.hypothesis);
      }
    }
    s.open = std::move(open);
    s.done = s.open.empty() || finished.size() == beam;
  }

 private:
  const SpecialTokens& special_;
  const SearchSettings& settings_;
  std::vector<Candidate> candidates_;
  std::vector<int64_t> places_;
};

// The next token of every open hypothesis. All sentences have `width` rows; those of a sentence
// with fewer hypotheses repeat its first.
Tensor next_tokens(const std::vector<Search>& searches, int64_t width, int64_t begin,
                   Device device) {
  std::vector<int64_t> ids;
  for (const Search& s : searches) {
    for (int64_t i = 0; i < width; ++i) {
      const auto h = i < std::ssize(s.open) ? static_cast<size_t>(i) : size_t{0};
      ids.push_back(s.open[h].tokens.empty() ? begin : s.open[h].tokens.back());
    }
  }
  return Tensor::from_vector(ids, Shape{std::ssize(ids), 1}, device);
}

// The states of the hypotheses that go on, of the sentences that are not done.
int64_t follow(std::vector<Search>& searches, int64_t width, StepDecoder& decoder) {
  int64_t next_width = 0;
  for (const Search& s : searches)
    if (!s.done) next_width = std::max<int64_t>(next_width, std::ssize(s.open));
  std::vector<int64_t> hypotheses, sentences;
  for (size_t i = 0; i < searches.size(); ++i) {
    const Search& s = searches[i];
    if (s.done) continue;
    sentences.push_back(static_cast<int64_t>(i));
    for (int64_t h = 0; h < next_width; ++h) {
      const auto from = h < std::ssize(s.open) ? static_cast<size_t>(h) : size_t{0};
      hypotheses.push_back(static_cast<int64_t>(i) * width + s.parents[from]);
    }
  }
  std::erase_if(searches, [](const Search& s) { return s.done; });
  if (!searches.empty()) decoder.select(hypotheses, sentences);
  return next_width;
}

bool counts_up_to(const std::vector<int64_t>& places, int64_t n) {
  if (std::ssize(places) != n) return false;
  for (int64_t i = 0; i < n; ++i)
    if (places[static_cast<size_t>(i)] != i) return false;
  return true;
}

}  // namespace

StepDecoder::StepDecoder(Transformer& model, const Tensor& source, const Tensor& source_valid)
    : model_(model),
      source_valid_(source_valid),
      states_(static_cast<size_t>(model.eval_draws())),
      hypotheses_(source.size(0)),
      sentences_(source.size(0)) {
  check(!model.training(), "[decode] the model is in training mode: {}",
        "open an EvalScope around decoding");
  for (size_t e = 0; e < states_.size(); ++e) {
    model_.use_eval_draw(static_cast<int>(e));
    memory_.push_back(model_.encode(source, source_valid));
    states_[e].resize(model_.decoder.layers.size());
  }
}

Tensor StepDecoder::advance(const Tensor& tokens) {
  hypotheses_ = tokens.size(0);
  Variable total;
  for (size_t e = 0; e < states_.size(); ++e) {
    model_.use_eval_draw(static_cast<int>(e));
    const Variable one = log_probs(model_.decode(
        tokens, Tensor(), memory_.empty() ? Variable() : memory_[e], source_valid_, &states_[e]));
    total = total.defined() ? add(total, one) : one;
  }
  memory_.clear();
  if (states_.size() > 1) total = mul(total, 1.0 / static_cast<double>(states_.size()));
  return total.value();
}

void StepDecoder::select(const std::vector<int64_t>& hypotheses,
                         const std::vector<int64_t>& sentences) {
  check(memory_.empty(), "[decode] nothing is decoded yet: {}", "call advance before select");
  const Device device = model_.source_embedding.weight.device();
  const bool same_hypotheses = counts_up_to(hypotheses, hypotheses_);
  const bool same_sentences = counts_up_to(sentences, sentences_);
  const Tensor rows = Tensor::from_vector(hypotheses).to(device);
  const Tensor kept = Tensor::from_vector(sentences).to(device);
  for (std::vector<LayerState>& draw : states_) {
    for (LayerState& layer : draw) {
      if (!same_hypotheses) layer.self.select(rows);
      if (!same_sentences) layer.source.select(kept);
    }
  }
  if (!same_sentences && source_valid_.defined())
    source_valid_ = index_select(Variable(source_valid_), 0, kept).value();
  hypotheses_ = std::ssize(hypotheses);
  sentences_ = std::ssize(sentences);
}

std::vector<std::vector<Hypothesis>> beam_search(Transformer& model, const Tensor& source,
                                                 const Tensor& source_valid,
                                                 const std::vector<int64_t>& max_lengths,
                                                 const SpecialTokens& special,
                                                 const SearchSettings& settings) {
  const auto B = static_cast<size_t>(source.size(0));
  const int64_t V = model.settings().target_vocabulary;
  check(settings.beam >= 1, "[beam_search] beam is {} and must be at least 1", settings.beam);
  check(std::isfinite(settings.length_penalty),
        "[beam_search] length_penalty is {} and must be finite", settings.length_penalty);
  check(max_lengths.size() == B, "[beam_search] {} length limits for {} sentences",
        max_lengths.size(), B);
  check(special.begin >= 0 && special.begin < V && special.end >= 0 && special.end < V,
        "[beam_search] begin {} and end {} must be tokens below {}", special.begin, special.end, V);
  for (const int64_t token : special.never) {
    check(token >= 0 && token < V, "[beam_search] never has {}, which is no token below {}", token,
          V);
    check(token != special.end,
          "[beam_search] never has the end token {}: no translation could end; leave it out",
          token);
  }
  std::vector<std::vector<Hypothesis>> finished(B);
  std::vector<Search> searches;
  for (size_t b = 0; b < B; ++b) {
    check(max_lengths[b] >= 0, "[beam_search] the length limit of sentence {} is {}", b,
          max_lengths[b]);
    searches.emplace_back(b, max_lengths[b]);
  }
  if (B == 0) return finished;

  const NoGrad no_grad;
  const EvalScope evaluation(model);
  StepDecoder decoder(model, source, source_valid);
  BeamSearch search(special, settings);
  for (int64_t width = 1; !searches.empty();) {
    const Tensor scores =
        decoder.advance(next_tokens(searches, width, special.begin, source.device()));
    const auto step_all = [&]<class T>(const Tensor& on_host) {
      const T* rows = on_host.data<T>();
      for (size_t i = 0; i < searches.size(); ++i) {
        Search& s = searches[i];
        const auto block = static_cast<size_t>(width * V);
        search.step<T>(s, {rows + i * block, s.open.size() * static_cast<size_t>(V)},
                       finished[s.sentence]);
      }
    };
    if (scores.dtype() == DType::float64) {
      step_all.operator()<double>(scores.to(kCpu).contiguous());
    } else {
      step_all.operator()<float>(scores.to(DType::float32).to(kCpu).contiguous());
    }
    width = follow(searches, width, decoder);
  }
  for (std::vector<Hypothesis>& one : finished) {
    // Log-probabilities that are no numbers end nothing.
    if (one.empty()) one.push_back({{}, -std::numeric_limits<double>::infinity()});
    std::stable_sort(one.begin(), one.end(),
                     [](const Hypothesis& a, const Hypothesis& b) { return a.score > b.score; });
  }
  return finished;
}

}  // namespace macgrad::nn

// Grammar: S -> NP verb NP [prep NP] [adverb]; NP -> article [adjective] noun.
// Target:  [adverb'] NP' [NP' prep'] NP' verb'; NP' -> article'(gender, definiteness) noun'
// [adjective'].
#include "macgrad/experiments/common/toy_corpus.h"

#include <string>
#include <unordered_set>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/shuffle.h"

namespace macgrad::experiments {
namespace {

struct Word {
  const char* source;
  const char* target;
  int gender = 0;  // of a noun: chooses the article
};

constexpr Word kNouns[] = {{"dog", "velu", 0},    {"cat", "mirra", 1},    {"girl", "sanne", 1},
                           {"boy", "torko", 0},   {"house", "bastel", 2}, {"tree", "arvo", 0},
                           {"river", "lissa", 1}, {"boat", "kemet", 2},   {"man", "dorun", 0},
                           {"woman", "feya", 1},  {"ball", "rundel", 2},  {"horse", "kavalo", 0}};
constexpr Word kAdjectives[] = {{"small", "pik"},   {"big", "grond"},  {"red", "ruv"},
                                {"old", "senek"},   {"young", "nevi"}, {"quiet", "tishi"},
                                {"black", "morak"}, {"happy", "gaudi"}};
constexpr Word kVerbs[] = {{"sees", "vidar"},     {"finds", "troven"},  {"follows", "sekuit"},
                           {"loves", "amat"},     {"paints", "pintur"}, {"carries", "portan"},
                           {"watches", "gardit"}, {"hears", "audil"}};
constexpr Word kPrepositions[] = {
    {"near", "pruk"}, {"behind", "derri"}, {"under", "subit"}, {"beside", "lator"}};
constexpr Word kAdverbs[] = {{"today", "hodi"}, {"often", "saepo"}, {"again", "denov"}};
constexpr const char* kArticles[2][3] = {{"lo", "la", "le"}, {"un", "una", "une"}};

template <std::size_t N>
const Word& pick(const Word (&words)[N], SplitMix& random) {
  return words[random.below(N)];
}

struct Phrase {
  std::string source;
  std::string target;
};

Phrase noun_phrase(SplitMix& random) {
  const bool indefinite = random.below(2) == 1;
  const Word& noun = pick(kNouns, random);
  Phrase phrase{indefinite ? "a" : "the", kArticles[indefinite][noun.gender]};
  phrase.target.append(" ").append(noun.target);
  if (random.below(2) == 1) {
    const Word& adjective = pick(kAdjectives, random);
    // "an old": the one irregular form of the source.
    if (indefinite && adjective.source[0] == 'o') phrase.source = "an";
    phrase.source.append(" ").append(adjective.source);
    phrase.target.append(" ").append(adjective.target);
  }
  phrase.source.append(" ").append(noun.source);
  return phrase;
}

Phrase sentence(SplitMix& random) {
  const Phrase subject = noun_phrase(random);
  const Word& verb = pick(kVerbs, random);
  const Phrase object = noun_phrase(random);
  Phrase whole{subject.source + ' ' + verb.source + ' ' + object.source, subject.target};
  if (random.below(2) == 1) {
    const Word& preposition = pick(kPrepositions, random);
    const Phrase place = noun_phrase(random);
    whole.source.append(" ").append(preposition.source).append(" ").append(place.source);
    whole.target.append(" ").append(place.target).append(" ").append(preposition.target);
  }
  whole.target.append(" ").append(object.target).append(" ").append(verb.target);
  if (random.below(3) == 0) {
    const Word& adverb = pick(kAdverbs, random);
    whole.source.append(" ").append(adverb.source);
    whole.target = std::string(adverb.target) + ' ' + whole.target;
  }
  whole.source += " .";
  whole.target += " .";
  return whole;
}

}  // namespace

ToyCorpus make_toy_corpus(std::uint64_t seed, std::size_t train_pairs, std::size_t valid_pairs) {
  constexpr std::size_t kMost = 100000;  // far below what the grammar yields, so drawing ends soon
  if (train_pairs > kMost || valid_pairs > kMost - train_pairs) {
    throw Error("toy corpus: {} + {} pairs are more than {}", train_pairs, valid_pairs, kMost);
  }
  SplitMix random(seed);
  std::unordered_set<std::string> seen;
  ToyCorpus corpus;
  while (seen.size() < train_pairs + valid_pairs) {
    Phrase pair = sentence(random);
    if (!seen.insert(pair.source).second) continue;
    ParallelText& part = seen.size() <= train_pairs ? corpus.train : corpus.valid;
    part.source.push_back(std::move(pair.source));
    part.target.push_back(std::move(pair.target));
  }
  return corpus;
}

}  // namespace macgrad::experiments

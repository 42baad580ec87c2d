// Options of every program: what numbers and lists mean, and that a wrong number is answered by a
// sentence, whichever option of whichever program it is for.
#include <doctest/doctest.h>

#include <regex>

#include "macgrad/experiments/bench/command.h"
#include "macgrad/experiments/common/lists.h"
#include "macgrad/experiments/common/options.h"
#include "macgrad/experiments/inspect/attention_sharpness.h"
#include "macgrad/experiments/inspect/bias.h"
#include "macgrad/experiments/inspect/check.h"
#include "macgrad/experiments/inspect/compare.h"
#include "macgrad/experiments/inspect/explode.h"
#include "macgrad/experiments/inspect/page.h"
#include "macgrad/experiments/inspect/record.h"
#include "macgrad/experiments/inspect/statistics.h"
#include "macgrad/experiments/multi30k/commands.h"
#include "macgrad/experiments/nmse/command.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/printed.h"

namespace macgrad::experiments {
namespace {

using testing::contains;
using testing::error_of;
using testing::printed;
using Words = std::vector<std::string>;

struct Program {
  const char* name;
  int (*run)(int argc, const char* const* argv);
};
constexpr Program kPrograms[] = {
    {"nmse", nmse_command},
    {"bench", bench_command},
    {"multi30k", train_command},
    {"multi30k study", study_command},
    {"multi30k translate", translate_command},
    {"multi30k score", score_command},
    {"multi30k plot", plot_command},
    {"inspect", record_command},
    {"inspect page", page_command},
    {"inspect check", check_command},
    {"inspect compare", compare_command},
    {"inspect explode", explode_command},
    {"inspect attention", attention_command},
    {"inspect statistics", statistics_command},
    {"inspect bias", bias_command},
};

int run(const Program& program, const Words& words) {
  std::vector<const char*> argv{program.name};
  for (const std::string& word : words) argv.push_back(word.c_str());
  return program.run(static_cast<int>(argv.size()), argv.data());
}

struct Outcome {
  int code = 0;
  std::string message;
};
// Only parses: an option that no program has is an error after all others.
Outcome parse(const Program& program, Words words) {
  words.emplace_back("--no-such-option");
  Outcome outcome;
  outcome.message = printed(stderr, [&] { outcome.code = run(program, words); });
  return outcome;
}

std::string help_of(const Program& program) {
  return printed(stdout, [&] { CHECK(run(program, {"--help"}) == 0); });
}

// Options of numbers in --help, and their types.
std::vector<std::pair<std::string, std::string>> number_options(const Program& program) {
  const std::string help = help_of(program);
  static const std::regex pattern("\\n  (--[a-z0-9-]+) (INT|FLOAT|UINT|INTS)\\b");
  std::vector<std::pair<std::string, std::string>> options;
  for (std::sregex_iterator at(help.begin(), help.end(), pattern), end; at != end; ++at)
    options.emplace_back((*at)[1], (*at)[2]);
  return options;
}

TEST_CASE("a wrong number is a sentence that names the option, in every option of every program") {
  const std::string long_number(400, '7');
  const Words for_all{"-1",   "",      "12abc",  "x",    "nan", "inf",
                      "-inf", "1e400", "-1e400", "0x10", "1 2"};
  const Words for_whole{"1.5",
                        "1e3",
                        "99999999999999999999",
                        "-99999999999999999999",
                        long_number,
                        "-" + long_number};
  size_t options = 0;
  for (const Program& program : kPrograms) {
    for (const auto& [option, type] : number_options(program)) {
      ++options;
      Words values = for_all;
      if (type != "FLOAT") values.insert(values.end(), for_whole.begin(), for_whole.end());
      if (type == "FLOAT") values.push_back("1" + long_number);
      for (const std::string& value : values) {
        CAPTURE(program.name);
        CAPTURE(option);
        CAPTURE(value);
        const Outcome outcome = parse(program, {option, value});
        CAPTURE(outcome.message);
        CHECK(outcome.code == 2);
        CHECK(outcome.message.starts_with(option));
        CHECK_FALSE(contains(outcome.message, "no-such-option"));
        CHECK_FALSE(std::regex_search(outcome.message, std::regex("[0-9]{30}")));
        // Once, not "--seed: --seed:".
        CHECK_FALSE(contains(outcome.message.substr(1), option));
      }
    }
  }
  // nmse 12, bench 1, multi30k 35 and more: none is passed over.
  CHECK(options > 150);
}

TEST_CASE("messages of numbers") {
  double rate = 0.5;
  int64_t count = 3;
  int order = 1;
  uint64_t seed = 7;
  const auto message = [&](const std::string& line) {
    Options options("demo");
    options.number("--lr", rate, above(0), "");
    options.number("--share", rate, between(0, 0.999), "");
    options.number("--count", count, at_least(1), "");
    options.number("--order", order, between(1, 2), "");
    options.number("--seed", seed, "");
    return error_of([&] { options.parse(line); });
  };
  CHECK(message("--lr 0") == "--lr 0 must be above 0");
  CHECK(message("--lr -1e-3") == "--lr -1e-3 must be above 0");
  CHECK(message("--lr 1e400") == "--lr 1e400 is too large or too small for a number of 64 bits");
  CHECK(message("--lr nan") == "--lr nan is not a finite number");
  CHECK(message("--lr 12abc") == "--lr \"12abc\" is not a number");
  CHECK(message("--share 1") == "--share 1 must be at most 0.999");
  CHECK(message("--share -0.1") == "--share -0.1 must be at least 0");
  CHECK(message("--count 0") == "--count 0 must be at least 1");
  CHECK(message("--count 1.5") == "--count \"1.5\" is not a whole number");
  CHECK(message("--count 1099511627777") == "--count 1099511627777 must be at most 1099511627776");
  CHECK(message("--count 99999999999999999999") ==
        "--count 99999999999999999999 must be at most 1099511627776");
  CHECK(message("--order 3") == "--order 3 must be at most 2");
  CHECK(message("--order 4294967297") == "--order 4294967297 must be at most 2");
  CHECK(message("--seed -1") == "--seed -1 must be at least 0");
  CHECK(message("--seed 18446744073709551616") ==
        "--seed 18446744073709551616 must be at most 18446744073709551615");
  CHECK(count == 3);
  CHECK(message("--lr 1e-3 --count 1099511627776 --order 2 --seed 18446744073709551615") == "");
  CHECK(rate == 1e-3);
  CHECK(count == kLargestInteger);
  CHECK(order == 2);
  CHECK(seed == UINT64_MAX);
}

TEST_CASE("lists and ranges of whole numbers") {
  using List = std::vector<std::int64_t>;
  const auto parse = [](const char* text) { return parse_integers("--lengths", text); };
  CHECK(parse("200,500,1000") == List{200, 500, 1000});
  CHECK(parse("7") == List{7});
  CHECK(parse(" 1 , 2 ") == List{1, 2});
  CHECK(parse("2^4,2^10") == List{16, 1024});
  CHECK(parse("1:4") == List{1, 2, 3, 4});
  CHECK(parse("200:1000:400") == List{200, 600, 1000});
  CHECK(parse("200:900:400") == List{200, 600});
  CHECK(parse("16:128:x2") == List{16, 32, 64, 128});
  CHECK(parse("2^4:2^6:x2,100") == List{16, 32, 64, 100});
  CHECK(parse("1099511627776") == List{kLargestInteger});
  for (const char* wrong : {"",
                            ",",
                            "1,",
                            "a",
                            "1.5",
                            "0",
                            "-3",
                            "1:",
                            "5:1",
                            "1:9:0",
                            "1:9:-1",
                            "1:8:x1",
                            "1:2:3:4",
                            "2^",
                            "2^63",
                            "3^60",
                            "1e3",
                            "99999999999999999999",
                            "1:1000000",
                            "1 2",
                            "0x10",
                            "1099511627777",
                            "9223372036854775806:9223372036854775807:5",
                            "4611686018427387904:9223372036854775807:x2"}) {
    CAPTURE(wrong);
    CHECK(contains(error_of([&] { parse(wrong); }), "--lengths"));
  }
  CHECK(parse_integers("--n", "0:1", 0) == List{0, 1});
  CHECK(parse_words("--draws", "iid, h01", {"iid", "h01"}) ==
        std::vector<std::string>{"iid", "h01"});
  CHECK(error_of([] {
          parse_words("--draws", "iid,x", {"iid", "h01"});
        }) == "--draws: unknown \"x\"; known: iid, h01");
  CHECK(contains(error_of([] { parse_words("--draws", "iid,,", {}); }), "empty word"));
}

TEST_CASE("lists: a value may hold the separator") {
  CHECK(split_list("exp,inv") == Words{"exp", "inv"});
  CHECK(split_list("poly:c=1,k=2") == Words{"poly:c=1,k=2"});
  CHECK(split_list("exp, poly:c=1, k=2 ,poly:k=3,inv") ==
        Words{"exp", "poly:c=1,k=2", "poly:k=3", "inv"});
  CHECK(split_list("poly:c=1,k=2,exp") == Words{"poly:c=1,k=2", "exp"});
  // Without a colon before it, NAME=VALUE is a value like any other.
  CHECK(split_list("rmfa D=128,n=200 f") == Words{"rmfa D=128", "n=200 f"});
  CHECK(split_list("rmfa,n=200") == Words{"rmfa", "n=200"});
  CHECK(split_list("200:1000:200,5") == Words{"200:1000:200", "5"});
  CHECK(split_list("") == Words{""});
  Words kernels{"exp"};
  const auto parsed = [&](const std::string& line) {
    Options options("demo");
    options.words("--kernel", kernels, "");
    options.parse(line);
    return kernels;
  };
  CHECK(parsed("--kernel poly:c=1,k=2,exp") == Words{"poly:c=1,k=2", "exp"});
  CHECK(parsed("--kernel exp --kernel poly:c=1,k=2") == Words{"exp", "poly:c=1,k=2"});
  CHECK(parsed("--kernel exp inv,log") == Words{"exp", "inv", "log"});
  CHECK(contains(error_of([&] { parsed("--kernel exp,,inv"); }), "empty word"));
}

TEST_CASE("the rule of lists is in --help of every program that takes one") {
  for (const Program& program : kPrograms) {
    const std::string help = help_of(program);
    CAPTURE(help);
    CHECK(std::regex_search(help, std::regex("--[a-z]+ LIST")) == contains(help, "LIST: values"));
    CHECK(std::regex_search(help, std::regex("--[a-z]+ INTS")) == contains(help, "INTS: whole"));
  }
}

// Options that a program could take, being those of multi30k, but that nothing in it reads.
TEST_CASE("options without effect are refused, and not in --help") {
  const Words of_runs{"--patience=3",       "--average=2",    "--keep=2",
                      "--graph=off",        "--accumulate=2", "--checkpoint-minutes=1",
                      "--shape-multiple=4", "--bleu-every=2", "--valid-bleu-sentences=2",
                      "--beam=7",           "--test=test_x",  "--length-penalty=2"};
  const Words of_updates{"--lr=1",         "--warmup=1",       "--schedule=constant",
                         "--clip=1",       "--adam-beta1=0.5", "--adam-beta2=0.5",
                         "--adam-eps=0.1", "--weight-decay=1", "--warmup-from=0.1",
                         "--epochs=3",     "--max-updates=3"};
  const Words of_gradients{"--dropout=0.1", "--attention-dropout=0.1", "--label-smoothing=0.1",
                           "--sentences=3"};
  const auto refused = [](const Program& program, const Words& options) {
    const std::string help = help_of(program);
    for (const std::string& option : options) {
      const std::string name = option.substr(0, option.find('='));
      const Outcome outcome = parse(program, {"--toy", option});
      CAPTURE(program.name);
      CAPTURE(outcome.message);
      CHECK(outcome.code == 2);
      CHECK(outcome.message.starts_with(name + " has no effect on this command"));
      CHECK_FALSE(contains(help, "  " + name + " "));
    }
  };
  const auto taken = [](const Program& program, const Words& options) {
    for (const std::string& option : options) {
      const Outcome outcome = parse(program, {"--toy", option});
      CAPTURE(program.name);
      CAPTURE(option);
      CHECK(contains(outcome.message, "--no-such-option"));
    }
  };
  const Program record{"inspect", record_command}, check{"check", check_command},
      explode{"explode", explode_command}, attention{"attention", attention_command},
      statistics{"statistics", statistics_command}, bench{"bench", bench_command};
  for (const Program& program : {record, check, explode, attention, statistics})
    refused(program, of_runs);
  for (const Program& program : {check, attention, statistics}) refused(program, of_updates);
  for (const Program& program : {record, explode}) taken(program, of_updates);
  for (const Program& program : {record, check, explode, attention}) {
    taken(program, of_gradients);
    refused(program, {"--eval-draws=2"});
  }
  refused(statistics, of_gradients);
  taken(statistics, {"--eval-draws=2"});
  refused(check, {"--out=x"});
  refused(explode, {"--out=x"});
  // Others do not have them at all.
  for (const char* option : {"--seed", "--out", "--precision"})
    CHECK_FALSE(contains(help_of(bench), option));
}

TEST_CASE("options that another one leaves without effect say so") {
  const auto message = [](int (*program)(int, const char* const*), const Words& words) {
    std::string text;
    int code = 0;
    text = printed(stderr, [&] { code = run({"program", program}, words); });
    CHECK(code == 2);
    return text;
  };
  CHECK(contains(message(nmse_command, {"--draws", "optimal", "--p", "3"}), "--p has no effect"));
  CHECK(contains(message(nmse_command, {"--presbn", "none", "--presbn-eps", "1e-3"}),
                 "--presbn-eps has no effect"));
  CHECK(contains(message(nmse_command, {"--draws", "iid,x"}), "--draws: unknown \"x\""));
  CHECK(contains(message(bias_command, {"--draws", "optimal", "--p", "3"}), "--p has no effect"));
  CHECK(contains(message(nmse_command, {"--map", "positive", "--draws", "iid"}),
                 "--draws has no effect with --map positive; add --map maclaurin"));
  CHECK(contains(message(train_command, {"--toy", "--features", "64"}),
                 "--features has no effect with --attention softmax; use --attention rmfa, or "
                 "--attention linear with --map"));
  CHECK(contains(message(train_command, {"--toy", "--attention", "rmfa", "--map", "trig"}),
                 "--map has no effect with --attention rmfa; use --attention linear"));
  CHECK(contains(message(attention_command, {"--toy", "--attention", "linear", "--map", "elu"}),
                 "--attention linear --map elu has no logits to measure"));
  CHECK(contains(message(record_command, {"--toy", "--clip", "3"}), "without --steps 2 or more"));
  CHECK(contains(message(record_command, {"--toy", "--steps", "2", "--epochs", "3"}),
                 "--epochs has no effect without --schedule one-cycle"));
  CHECK(contains(message(attention_command, {"--toy", "--redraws", "3"}),
                 "--redraws has no effect with --attention softmax"));
  CHECK(contains(message(score_command, {"--hypotheses", "a", "--references", "b", "--seed", "3"}),
                 "--seed has no effect without --confidence"));
  CHECK(contains(message(score_command, {"--hypotheses", "a", "--references", "b", "--metrics",
                                         "chrf", "--tokenize", "none"}),
                 "--tokenize has no effect"));
  CHECK(contains(message(train_command, {"--toy", "--graph", "on"}), "--graph has no effect"));
  CHECK(contains(message(train_command, {"--toy", "--warmup", "0", "--warmup-from", "1e-7"}),
                 "--warmup-from has no effect"));
  CHECK(contains(message(study_command, {"--toy", "--attention", "rmfa"}),
                 "--attention is set by the rows of the study"));
}

}  // namespace
}  // namespace macgrad::experiments

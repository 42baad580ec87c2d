// Damaged files of every kind that a program reads: a valid file is mutated, and reading it must
// give an object or an Error, never another exception, a crash, much memory or a long wait.
// Mutations follow from a fixed seed. They run for $MACGRAD_FUZZ_SECONDS (default 3), which CTest
// sets from the CMake option of that name.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <zlib.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>

#include "macgrad/core/safetensors.h"
#include "macgrad/experiments/common/csv.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/shuffle.h"
#include "macgrad/experiments/common/text_codec.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/multi30k/checkpoint.h"
#include "macgrad/tests/temporary_folder.h"

// Sanitizers reserve terabytes of addresses, so there no limit can be set.
#if defined(__SANITIZE_ADDRESS__)
#define MACGRAD_LIMIT_MEMORY 0
#else
#define MACGRAD_LIMIT_MEMORY 1
#endif

namespace macgrad::experiments {
namespace {
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::string bytes_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// While alive, an allocation beyond 1 GiB more than the process has now is a std::bad_alloc.
class MemoryLimit {
 public:
  MemoryLimit() {
    if (!MACGRAD_LIMIT_MEMORY) return;
    REQUIRE(getrlimit(RLIMIT_AS, &before_) == 0);
    std::ifstream statm("/proc/self/statm");
    rlim_t pages = 0;
    statm >> pages;
    REQUIRE(pages > 0);
    rlimit limit = before_;
    limit.rlim_cur = pages * 4096 + (rlim_t{1} << 30);
    REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
  }
  ~MemoryLimit() {
    if (MACGRAD_LIMIT_MEMORY) setrlimit(RLIMIT_AS, &before_);
  }

 private:
  rlimit before_{};
};

struct Reader {
  std::string file;   // its name, of which ".gz" counts
  std::string valid;  // contents
  std::function<void(const std::string& path)> read;
};

std::string written(const std::function<void(const std::string& path)>& write) {
  const testing::TemporaryFolder folder;
  write(folder / "file");
  return bytes_of(folder / "file");
}

void use_codec(const TextCodec& codec) {
  codec.decode(codec.encode("a dog <unk> \xC3\xA9 runs"));
  if (codec.size() > Vocabulary::kSpecials) codec.decode({codec.size() - 1});
}

std::vector<Reader> readers() {
  std::string text = "\xEF\xBB\xBF";
  for (int i = 0; i < 40; ++i)
    text += "a dog runs " + std::to_string(i * 7919) + " caf\xC3\xA9 \xF0\x9F\x90\x95\r\n";
  const std::vector<std::string> lines{"a dog runs", "a cat runs", "ein hund l\xC3\xA4uft"};
  const auto codec_reader = [](auto load) {
    return [load](const std::string& path) { use_codec(TextCodec(load(path))); };
  };
  Multi30kSettings toy;
  make_toy(toy);
  toy.d_model = toy.ffn = 8;
  toy.heads = 2;
  toy.attention = "rmfa";  // with feature draws in its checkpoint
  toy.ppsbn = true;
  toy.features = 12;
  const auto model = std::make_shared<nn::Transformer>(transformer_settings(toy, 12, 12));
  const auto adam = std::make_shared<nn::Adam>(nn::decay_groups(*model, 0.0));
  RunState state;
  state.place = {2, 9, {4, 300, 12.5, 0.5}, 1, 0};
  state.add({1, 3.0, 2.5, 7.5, 1.0, 100, 5});
  return {
      {"text.txt", text, [](const std::string& path) { read_lines(path); }},
      {"text.gz", written([&](const std::string& path) {
         gzFile stream = gzopen(path.c_str(), "wb");
         gzwrite(stream, text.data(), static_cast<unsigned>(text.size()));
         gzclose(stream);
       }),
       [](const std::string& path) { read_lines(path); }},
      {"words.vocab",
       written([&](const std::string& path) { Vocabulary::build(lines, 1).save(path); }),
       codec_reader(Vocabulary::load)},
      {"subwords.model",
       written([&](const std::string& path) { Subwords::train(lines, 280).save(path); }),
       codec_reader(Subwords::load)},
      {"checkpoint.safetensors", written([&](const std::string& path) {
         save_safetensors(
             path,
             {{"model/weight", Tensor::from_vector(std::vector<float>(12, 0.5F), {3, 4})},
              {"model/empty", Tensor::from_vector(std::vector<float>{}, {0, 4})},
              {"optimizer/steps", Tensor::from_vector(std::vector<int64_t>{7}, {1})}},
             {{"format", "macgrad"}, {"settings", to_json(toy).dump()}});
       }),
       [](const std::string& path) { load_safetensors(path); }},
      {"run.safetensors", written([&](const std::string& path) {
         save_checkpoint(path, *model, *adam, state, toy, {{"train", "00"}});
       }),
       [model, adam](const std::string& path) {
         check_settings(checkpoint_settings(path));
         load_checkpoint(path, *model, *adam, {{"train", "00"}});
       }},
      {"metrics.csv", written([&](const std::string& path) {
         CsvWriter csv(path, {"epoch", "loss, \"nats\"", "note"});
         for (int64_t i = 0; i < 20; ++i) csv.row({i, 1.0 / static_cast<double>(i + 1), "a, b"});
       }),
       [](const std::string& path) { read_csv(path).numbers("epoch"); }},
      {"settings.json", written([&](const std::string& path) { write_json(path, to_json(toy)); }),
       [](const std::string& path) { check_settings(settings_from_json(read_json(path))); }},
  };
}

// One small damage: bits, bytes, numbers of eight bytes, and pieces taken away, repeated, put in,
// or brought from another kind of file.
void damage(std::string& bytes, const std::string& other, SplitMix& random) {
  const auto below = [&](std::size_t bound) {
    return bound == 0 ? 0 : static_cast<std::size_t>(random.below(bound));
  };
  const std::size_t at = below(bytes.size());
  const std::size_t length = 1 + below(std::min<std::size_t>(64, bytes.size() - at));
  switch (below(9)) {
    case 0:
      if (!bytes.empty()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
      break;
    case 1: {
      static constexpr char kOdd[] = "\0\x01\x7F\x80\xC0\xED\xF4\xFF\n\r\t\"\\[{}],:-.9e";
      if (!bytes.empty()) bytes[at] = kOdd[below(sizeof kOdd - 1)];
      break;
    }
    case 2: {
      std::uint64_t number = random.next() >> below(64);
      if (below(2) == 0) number = ~number;
      for (std::size_t i = 0; i < 8 && at + i < bytes.size(); ++i)
        bytes[at + i] = static_cast<char>(number >> 8 * i);
      break;
    }
    case 3:
      bytes.resize(at);
      break;
    case 4:
      bytes.erase(at, length);
      break;
    case 5:
      bytes.insert(at, bytes.substr(at, length));
      break;
    case 6: {
      const std::string piece = bytes.substr(at, 1 + below(4));
      std::string repeated;
      for (std::size_t i = below(2000); i > 0; --i) repeated += piece;
      bytes.insert(at, repeated);
      break;
    }
    case 7:
      bytes.insert(at, other.substr(below(other.size()), 1 + below(200)));
      break;
    case 8:  // digits are lengths, shapes and offsets
      for (std::size_t i = at; i < bytes.size(); ++i) {
        if (bytes[i] < '0' || bytes[i] > '9') continue;
        bytes.replace(i, 1, std::to_string(random.next() >> below(64)));
        break;
      }
      break;
  }
}

TEST_CASE("readers: a damaged file is an error or a valid object") {
  const char* option = std::getenv("MACGRAD_FUZZ_SECONDS");
  const double budget = option != nullptr && *option != '\0' ? std::atof(option) : 3.0;
  const testing::TemporaryFolder folder;
  const std::vector<Reader> all = readers();
  for (const Reader& reader : all) {
    CAPTURE(reader.file);
    CHECK_NOTHROW(reader.read(folder.write(reader.file, reader.valid)));
  }

  const MemoryLimit limit;
  std::vector<std::int64_t> refused(all.size()), accepted(all.size());
  const auto start = Clock::now();
  for (std::uint64_t round = 0; round < 20 || seconds_since(start) < budget; ++round) {
    for (std::size_t kind = 0; kind < all.size(); ++kind) {
      const Reader& reader = all[kind];
      SplitMix random(round, kind);
      std::string bytes = reader.valid;
      const std::uint64_t damages = 1 + random.below(4);
      for (std::uint64_t i = 0; i < damages; ++i)
        damage(bytes, all[random.below(all.size())].valid, random);
      // A new file each time: some file systems flush to the disk when one is written over.
      std::filesystem::remove(folder / reader.file);
      const std::string path = folder.write(reader.file, bytes);
      const auto begin = Clock::now();
      std::string failure;
      try {
        reader.read(path);
        ++accepted[kind];
      } catch (const Error& error) {
        if (std::string_view(error.what()).empty()) failure = "an error without a message";
        ++refused[kind];
      } catch (const std::exception& error) {
        failure = std::string("not an Error: ") + error.what();
      }
      if (seconds_since(begin) > 10.0) failure = "it took more than 10 s";
      INFO(reader.file << ", round " << round << ": " << failure);
      REQUIRE(failure.empty());
    }
  }
  // Damage that nobody notices, or that leaves nothing to read, would test nothing.
  for (std::size_t kind = 0; kind < all.size(); ++kind) {
    CAPTURE(all[kind].file);
    MESSAGE(all[kind].file << ": " << refused[kind] << " refused, " << accepted[kind]
                           << " accepted");
    CHECK(refused[kind] > 0);
  }
}

}  // namespace
}  // namespace macgrad::experiments

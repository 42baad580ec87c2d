// Signals: what the first and the second one do, which stay ignored, how the process then ends; and
// streams that can no longer be written.
#include <doctest/doctest.h>
#include <omp.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iterator>
#include <thread>

#include "macgrad/core/kernels/arrays.h"
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/options.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/tests/child.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {

using Folder = testing::TemporaryFolder;
using testing::contains;
using testing::in_child;

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Longer than a signal and its repeat to the whole group are apart.
void wait_a_moment() {
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
}

TEST_CASE("the first signal sets a flag, the second ends the process") {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
    CAPTURE(signal);
    {
      const InterruptGuard guard;
      CHECK_FALSE(guard.interrupted());
      CHECK(guard.exit_code() == 0);
      raise(signal);
      CHECK(guard.interrupted());
      CHECK(guard.exit_code() == 128 + signal);
    }
    CHECK_FALSE(InterruptGuard().interrupted());
    for (const int second : {SIGINT, SIGTERM}) {
      const int status = in_child([signal, second] {
        const InterruptGuard guard;
        raise(signal);
        if (!guard.interrupted()) return 1;
        wait_a_moment();
        raise(second);
        return 2;
      });
      CHECK(WIFSIGNALED(status));
      CHECK(WTERMSIG(status) == second);
    }
  }
  struct sigaction now = {};
  sigaction(SIGTERM, nullptr, &now);
  const bool handler_left = now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN;
  // doctest installs its own handler while a test runs; ours must not be what is left.
  const InterruptGuard guard;
  struct sigaction ours = {};
  sigaction(SIGTERM, nullptr, &ours);
  CHECK((!handler_left || now.sa_handler != ours.sa_handler));
}

TEST_CASE("signals that come twice by themselves are one request") {
  // `timeout` sends to the process and at once to its group; a closed terminal hangs up again when
  // the shell ends; every write to a closed pipe signals.
  const auto survives = [](int signal, bool pause) {
    return in_child([signal, pause] {
      const InterruptGuard guard;
      raise(signal);
      if (pause) wait_a_moment();
      raise(signal);
      return guard.exit_code() == 128 + signal ? 0 : 1;
    });
  };
  CHECK(survives(SIGTERM, false) == 0);
  CHECK(survives(SIGINT, false) == 0);
  CHECK(survives(SIGHUP, true) == 0);
  CHECK(survives(SIGPIPE, true) == 0);
}

TEST_CASE("signals that the caller ignores stay ignored") {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
    CAPTURE(signal);
    const int status = in_child([signal] {
      std::signal(signal, SIG_IGN);
      {
        const InterruptGuard guard;
        raise(signal);
        if (guard.interrupted() || guard.exit_code() != 0) return 1;
      }
      struct sigaction now = {};
      sigaction(signal, nullptr, &now);
      return now.sa_handler == SIG_IGN ? 0 : 2;
    });
    CHECK(status == 0);
  }
}

TEST_CASE("a program that a signal stopped ends by that signal") {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) {
    const int status = in_child([signal] { return end_program(128 + signal); });
    CHECK(WIFSIGNALED(status));
    CHECK(WTERMSIG(status) == signal);
  }
  for (const int code : {0, 1, 2, 3}) CHECK(end_program(code) == code);
}

TEST_CASE("a stream that cannot be written ends no run, and the program says so in the end") {
  const Folder folder;
  const auto code_of = [&](bool interrupted) {
    return in_child([&] {
      std::freopen("/dev/full", "w", stdout);
      std::freopen((folder / "err").c_str(), "w", stderr);
      std::setvbuf(stdout, nullptr, _IONBF, 0);
      const char* words[] = {"demo"};
      bool went_on = false;
      const int code = run_program(
          1, words, "demo", "A demonstration", [](Options&) {},
          [&] {
            say("lost\n");
            went_on = true;
            return interrupted ? 128 + SIGPIPE : 0;
          });
      std::fflush(stderr);
      return went_on ? code : 99;
    });
  };
  CHECK(WEXITSTATUS(code_of(false)) == 1);
  CHECK(contains(contents(folder / "err"), "standard output cannot be written"));
  CHECK(WEXITSTATUS(code_of(true)) == 128 + SIGPIPE);
  // Errors have nowhere to go then, which must not end in std::terminate.
  const int status = in_child([] {
    std::freopen("/dev/full", "w", stderr);
    const char* words[] = {"demo", "--unknown"};
    return run_program(
        2, words, "demo", "A demonstration", [](Options&) {}, [] { return 0; });
  });
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 2);
}

// Without a stack of its own the handler writes over the heap (experiments/common/interrupt.cpp).
TEST_CASE("Ctrl-C within a product leaves the heap whole") {
  const int status = in_child([] {
    stack_t none = {};
    none.ss_flags = SS_DISABLE;  // doctest's
    sigaltstack(&none, nullptr);
    omp_set_num_threads(1);
    const Tensor a = Tensor::full({64, 256}, 1.0F), b = Tensor::full({256, 64}, 2.0F);
    sigevent event = {};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGINT;
    timer_t timer;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0) return 2;
    for (long round = 0; round < 300; ++round) {
      const InterruptGuard guard;
      const itimerspec after = {{}, {0, 20'000 + 1'000 * round}};
      timer_settime(timer, 0, &after, nullptr);
      while (!guard.interrupted()) {
        const Tensor c = Tensor::empty({64, 64});
        kernels::matmul(a, b, c, 1.0, 0.0);
        if (c.data<float>()[4095] != 512.0F) return 3;
      }
    }
    return 0;
  });
  CHECK(status == 0);
}

}  // namespace
}  // namespace macgrad::experiments

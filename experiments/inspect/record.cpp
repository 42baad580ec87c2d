// Steps are turned into JSON one by one, so that a record of many holds the tensors of one.
#include "macgrad/experiments/inspect/record.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "macgrad/core/version.h"
#include "macgrad/experiments/common/interrupt.h"
#include "macgrad/experiments/common/machine.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/progress.h"
#include "macgrad/experiments/inspect/attention_view.h"
#include "macgrad/experiments/inspect/page.h"
#include "macgrad/experiments/inspect/step_record.h"

namespace macgrad::experiments {
namespace {

// A page above this opens slowly.
constexpr size_t kLargePage = 15U << 20;

struct RecordSettings {
  StepSettings step;
  int64_t steps = 1;
  bool fused = false;
  AttentionViewSettings view;
};

Json about(const RecordSettings& s, ModelStep& model, const RecordedStep& last) {
  const Multi30kSettings& m = s.step.model;
  Json list = Json::array();
  const auto add = [&](const std::string& what, const std::string& value) {
    list.push_back({what, value});
  };
  add("data", model.data_facts().dump());
  if (!s.step.checkpoint.empty()) add("checkpoint", s.step.checkpoint);
  add("sentences of a step", fmt::format("{}", model.rows()));
  add("parameters", fmt::format("{}", model.model().parameter_count()));
  add("attention", model.model().describe());
  add("seed", fmt::format("{}", m.common.seed));
  add("device", m.common.device);
  add("precision", m.common.precision);
  add("threads", fmt::format("{}", m.common.threads));
  if (s.fused) {
    add("fused ops", "as they run");
  } else {
    add("fused ops", "opened into their composites");
    add("loss: kernels and composites differ by", fmt::format("{:.3g}", last.fused.loss));
    add("gradients: they differ by at most",
        fmt::format("{:.3g} ({})", last.fused.gradient, last.fused.parameter));
  }
  add("commit", commit());
  return list;
}

int record(RecordSettings& s) {
  apply_common_options(s.step.model.common);
  check_settings(s.step.model);
  const InterruptGuard guard;
  ModelStep model(s.step);
  check_view(model, s.view);
  const RunDirectory out(s.step.model.common.out, "inspect");
  Json page{{"format", kRecordFormat},   {"title", model.title()}, {"about", nullptr},
            {"formulas", op_formulas()}, {"steps", Json::array()}, {"attentions", nullptr}};
  std::unique_ptr<RecordedStep> last;
  {
    Progress progress(s.steps, "step");
    for (int64_t i = 1;; ++i) {
      last.reset();
      last = record_step(model, !s.fused);
      progress.step({i, {{"loss", last->loss}, {"norm", last->gradient_norm}}, 0});
      if (i == s.steps || guard.interrupted()) break;
      // Before the update, which writes to the parameters that the record holds.
      page["steps"].push_back(to_json(*last, /*details=*/false));
      model.update();
      model.next();
    }
  }
  page["steps"].push_back(to_json(*last, /*details=*/true));
  page["attentions"] = attention_views(model, *last, s.view);
  page["about"] = about(s, model, *last);
  write_gradients_csv(*last, out.file("gradients.csv"));
  save_gradients(*last, out.file("gradients.safetensors"));
  save_values(*last, out.file("values.safetensors"));
  write_dot(*last, out.file("graph.dot"));
  write_file_atomically(out.file("graph.json"),
                        page.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  const std::string html = page_of(page);
  write_file_atomically(out.file("inspect.html"), html);
  Json settings{{"settings", to_json(s.step.model)},
                {"steps", s.steps},
                {"fused", s.fused},
                {"sentences", s.step.sentences},
                {"checkpoint", s.step.checkpoint}};
  settings.update(provenance());
  write_json(out.file("settings.json"), settings);
  if (html.size() > kLargePage)
    say(stderr,
        "note: the page has {:.0f} MB and will open slowly; record fewer --steps, fewer "
        "--sentences, or one --view\n",
        static_cast<double>(html.size()) / 1e6);
  say("{} ops and {} leaves of update {}, loss {:.4f}, gradient norm {:.4g}\n",
      last->graph.ops().size(), last->graph.leaves().size(), last->step, last->loss,
      last->gradient_norm);
  if (!s.fused)
    say("kernels and composites differ by {:.2g} in the loss, {:.2g} in the gradient of {}\n",
        last->fused.loss, last->fused.gradient, last->fused.parameter);
  say("Page: {}\n", out.file("inspect.html"));
  return guard.exit_code();
}

}  // namespace

int record_command(int argc, const char* const* argv) {
  RecordSettings s;
  return run_program(
      argc, argv, "inspect",
      "Records training steps, every value and gradient, and writes a page that shows them.",
      [&](Options& options) {
        options.footer(
            "Commands: page, check, compare, explode, attention, statistics, bias (without one: "
            "record); inspect COMMAND --help");
        s.step = step_settings(argc, argv);
        declare_step_options(options, s.step, {.updates = true});
        const double most = 1 << 30;
        options.number("--steps", s.steps, between(1, most),
                       "Training steps to record, one after the other");
        options.flag("--fused", s.fused, "Record fused ops as they run, not as their composites");
        options.text("--view", s.view.attention, "Attention to take apart: a module's path, or all",
                     "PATH");
        options.number("--view-head", s.view.head, between(0, most), "Its head");
        options.number("--view-sentence", s.view.sentence, between(0, most),
                       "And the sentence of the step");
        options.number("--redraws", s.view.redraws, between(2, 10000),
                       "Feature draws whose spread is shown");
        options.check([&] {
          if (s.steps > 1) return;
          for (const char* name :
               {"--clip", "--weight-decay", "--adam-beta1", "--adam-beta2", "--adam-eps"})
            if (options.given(name))
              throw UsageError("{} has no effect without --steps 2 or more", name);
        });
      },
      [&] { return record(s); });
}

}  // namespace macgrad::experiments

// `sluice plan`: a placement and a step's traffic, without creating anything.

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/factory.h"
#include "offload/report.h"
#include "tools/command.h"
#include "tools/model_shape.h"
#include "tools/smallest_budgets.h"

namespace sluice::tools {

namespace {

using Json = nlohmann::ordered_json;

// As given; every text was checked when it was parsed.
struct PlanOptions {
  std::string params;
  ModelShape shape;
  std::string hbm, pinned, nvme;
  std::vector<std::string> nvme_paths;
  std::string dtype = "bf16";
  std::string grad_dtype;
  std::string device = "auto";
  int64_t chunk_elements = 0;
  bool json = false;
};

const std::vector<std::string> kTypes = {"fp32", "bf16", "fp16"};
const std::vector<std::string> kDevices = {"auto", "host", "cuda"};

FloatType TypeOf(const std::string& name) {
  return name == "fp32" ? FloatType::kF32 : name == "bf16" ? FloatType::kBf16 : FloatType::kF16;
}

Bytes BudgetOf(const std::string& text) {
  if (text.empty()) return Bytes(-1);
  const absl::StatusOr<Bytes> bytes = ParseBytes(text);
  SLUICE_CHECK(bytes.ok());
  return *bytes;
}

RuntimeConfig ConfigOf(const PlanOptions& options) {
  RuntimeConfig config;
  config.types = {.param = TypeOf(options.dtype),
                  .grad = TypeOf(options.grad_dtype.empty() ? options.dtype : options.grad_dtype)};
  config.budgets = {BudgetOf(options.hbm), BudgetOf(options.pinned), BudgetOf(options.nvme)};
  config.nvme_paths = options.nvme_paths;
  config.chunk_elements = options.chunk_elements;
  config.device = options.device == "auto"   ? DeviceKind::kAuto
                  : options.device == "host" ? DeviceKind::kHost
                                             : DeviceKind::kCuda;
  return config;
}

// "resident 1 MiB, cache 5 MiB", without what is nothing.
std::string Parts(const std::vector<std::pair<const char*, Bytes>>& parts) {
  std::string text;
  for (const auto& [name, bytes] : parts) {
    if (bytes == Bytes(0)) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", name, FormatBytes(bytes));
  }
  return text.empty() ? "nothing" : text;
}

void AddModel(const ModelLayout& layout, const DeviceChoice& device, const RuntimeConfig& config,
              Page* page) {
  page->Section("Model");
  page->Row("parameters", fmt::format("{} in {} units, {} tensors, {} chunks of states",
                                      CountText(layout.parameter_count()), layout.units().size(),
                                      layout.tensors().size(), layout.chunks().size()));
  page->Row("types", fmt::format("parameters {}, gradients {}, states fp32",
                                 config.types.param.name(), Name(config.types.grad)));
  page->Row("device", fmt::format("{}: {}", Name(device.kind), device.reason));
}

constexpr size_t kTierColumns = 24;  // before the parts

std::string TierText(Bytes planned, Bytes budget, const std::string& parts) {
  return fmt::format("{:>10} {:>11}  {}", FormatBytes(planned), BudgetText(budget), parts);
}

void AddPlacement(const Plan& plan, Page* page) {
  const Placement& p = plan.placement;
  page->Section("Placed");
  page->Row("", fmt::format("{:>10} {:>11}", "planned", "budget"));
  const auto row = [page](const char* tier, Bytes planned, Bytes budget, const std::string& parts) {
    page->Row(tier, TierText(planned, budget, parts), kTierColumns);
  };
  row("hbm", p.hbm(), plan.budgets.hbm,
      Parts({{"parameters for good", p.hbm_fixed}, {"room for the others", p.hbm_cache}}));
  row("pinned", p.pinned(), plan.budgets.pinned,
      Parts({{"gradients", p.grads},
             {"parameters", p.params_pinned},
             {"states", p.states_pinned},
             {"buffers",
              p.state_buffer_bytes * p.state_buffers + p.param_buffer_bytes * p.param_buffers}}));
  row("nvme", p.nvme(), plan.budgets.nvme,
      Parts({{"parameters", p.params_nvme}, {"states", p.states_nvme}}));
}

void AddTraffic(const StepTraffic& traffic, Page* page) {
  constexpr int64_t kManySteps = 100'000;
  page->Section("Each step moves");
  const auto row = [page](const char* label, Bytes bytes, const std::string& what) {
    page->Row(label, fmt::format("{:>10}  {}", FormatBytes(bytes), what));
  };
  row("into HBM", traffic.to_hbm, "parameters, for forward and backward");
  row("out of HBM", traffic.grads, "gradients");
  row("from NVMe", traffic.nvme_read,
      traffic.read_ahead > Bytes(0)
          ? fmt::format("of it {} already during backward", FormatBytes(traffic.read_ahead))
          : "");
  row("to NVMe", traffic.nvme_written,
      traffic.nvme_written > Bytes(0)
          ? fmt::format("{} in {} steps: compare with what the drive is made for",
                        FormatBytes(traffic.nvme_written * kManySteps), kManySteps)
          : "");
}

std::string PlanText(const Plan& plan, const RuntimeConfig& config) {
  Page page;
  AddModel(plan.layout, plan.device, config, &page);
  AddPlacement(plan, &page);
  AddTraffic(TrafficOf(plan.layout, plan.placement), &page);
  return page.Text();
}

std::string RoundedUp(Bytes bytes) { return fmt::format("{}MiB", RoundUp(bytes, MiB(1)) / MiB(1)); }

// Says which budgets are too small, and what would do.
ExitCode CantWork(const PlanInput& input, const RuntimeConfig& config, const absl::Status& status,
                  bool as_json) {
  const Budgets smallest = SmallestBudgets(input);
  struct Tier {
    const char* name;
    Bytes given, smallest;
  };
  const Tier tiers[] = {{"hbm", input.budgets.hbm, smallest.hbm},
                        {"pinned", input.budgets.pinned, smallest.pinned},
                        {"nvme", input.budgets.nvme, smallest.nvme}};
  Page page;
  AddModel(input.layout, input.device, config, &page);
  page.Section("Budgets");
  page.Row("", fmt::format("{:>10} {:>12}", "budget", "smallest"));
  Json report = {{"error", std::string(Message(status))}};
  std::string advice = "give at least";
  for (const Tier& tier : tiers) {
    const bool enough = tier.given >= tier.smallest;
    page.Row(tier.name, fmt::format("{:>10} {:>12}{}", BudgetText(tier.given),
                                    FormatBytes(tier.smallest), enough ? "" : "  too small"));
    report["budgets_bytes"][tier.name] = tier.given.value();
    report["smallest_bytes"][tier.name] = tier.smallest.value();
    if (!enough) advice += fmt::format(" --{} {}", tier.name, RoundedUp(tier.smallest));
  }
  std::vector<std::string> ways = {advice};
  if (config.nvme_paths.empty()) {
    ways.emplace_back("or give --nvme-path DIR: without one nothing goes to NVMe");
  }
  page.List("Advice", ways);
  Print(as_json ? report.dump(2) + "\n" : page.Text());
  return Fail(Message(status));
}

ExitCode RunPlan(const PlanOptions& options) {
  const auto refuse = [&options](const absl::Status& status) {
    if (options.json) Print(Json{{"error", std::string(Message(status))}}.dump(2) + "\n");
    return Fail(Message(status));
  };
  ModelShape shape = options.shape;
  if (!options.params.empty()) shape.params = *ParseCount(options.params);
  const RuntimeConfig config = ConfigOf(options);
  const absl::StatusOr<ModelSpec> spec = MakeModelSpec(shape);
  if (!spec.ok()) {
    refuse(spec.status());
    return kUsage;
  }
  absl::StatusOr<PlanInput> input = MakePlanInput(*spec, config);
  if (!input.ok()) return refuse(input.status());
  absl::StatusOr<Placement> placement =
      MakePlacement(input->layout, input->budgets, input->options);
  if (!placement.ok()) return CantWork(*input, config, placement.status(), options.json);
  const Plan plan{std::move(input->layout), std::move(input->device), input->budgets,
                  *std::move(placement)};
  if (plan.placement.nvme() > Bytes(0)) {
    const auto paths = static_cast<uint32_t>(config.nvme_paths.size());
    const absl::Status space = CheckSpace(SegmentsOf(plan, paths), config.nvme_paths);
    if (!space.ok()) return refuse(space);
  }
  return Print(options.json
                   ? PlacementJson(plan.layout, plan.device, plan.placement, plan.budgets) + "\n"
                   : PlanText(plan, config));
}

// "" or why `text` can't be read: what CLI11 asks of a check.
template <typename T>
std::string Complaint(const absl::StatusOr<T>& parsed) {
  return parsed.ok() ? "" : std::string(Message(parsed.status()));
}

void AddModelOptions(CLI::App* app, PlanOptions* o) {
  app->add_option("--params", o->params, "Parameters, like 7B or 350M")
      ->type_name("COUNT")
      ->check([](const std::string& text) { return Complaint(ParseCount(text)); })
      ->group("Model");
  app->add_option("--layers", o->shape.layers, "Transformer blocks, or equal units (default 32)")
      ->check(CLI::PositiveNumber)
      ->group("Model");
  app->add_option("--hidden", o->shape.hidden, "Width of the blocks")
      ->check(CLI::PositiveNumber)
      ->group("Model");
  app->add_option("--vocab", o->shape.vocab,
                  "Rows of the embedding, if --params doesn't say (default 50257)")
      ->check(CLI::PositiveNumber)
      ->group("Model");
  app->add_option("--dtype", o->dtype, "Of parameters in compute: bf16 (default), fp16 or fp32")
      ->type_name("TYPE")
      ->check(CLI::IsMember(kTypes))
      ->group("Model");
  app->add_option("--grad-dtype", o->grad_dtype, "Of gradients (default: as --dtype)")
      ->type_name("TYPE")
      ->check(CLI::IsMember(kTypes))
      ->group("Model");
}

void AddBudget(CLI::App* app, const char* name, std::string* text, const char* help) {
  app->add_option(name, *text, help)
      ->type_name("SIZE")
      ->check([](const std::string& given) { return Complaint(ParseBytes(given)); })
      ->group("Budgets, like 512MiB");
}

}  // namespace

Command AddPlan(CLI::App* application) {
  const auto options = std::make_shared<PlanOptions>();
  CLI::App* app = application->add_subcommand(
      "plan", "What would be placed where, and what a step would move; creates nothing");
  AddModelOptions(app, options.get());
  AddBudget(app, "--hbm", &options->hbm, "Of HBM (default: from this machine)");
  AddBudget(app, "--pinned", &options->pinned, "Of pinned RAM (default: from this machine)");
  AddBudget(app, "--nvme", &options->nvme, "Of NVMe (default: no limit)");
  app->add_option("--nvme-path", options->nvme_paths,
                  "A directory for swap files, one per drive; without any, nothing goes to NVMe")
      ->type_name("DIR")
      ->group("Budgets, like 512MiB");
  app->add_option("--device", options->device, "auto (default), host or cuda")
      ->type_name("DEVICE")
      ->check(CLI::IsMember(kDevices));
  app->add_option("--chunk-elements", options->chunk_elements,
                  "Parameters whose states move together, a multiple of 4096")
      ->check(CLI::PositiveNumber);
  app->add_flag("--json", options->json, "As JSON (docs/api.md lists the keys)");
  app->footer(
      "\nThe model is --params in equal units; or a GPT of --layers and --hidden, whose embedding\n"
      "has --vocab rows, or what the blocks leave of --params. An example:\n"
      "  sluice plan --params 7B --layers 32 --hidden 4096 --hbm 4GiB --pinned 32GiB --nvme-path "
      ".");
  return {.app = app, .run = [options] { return RunPlan(*options); }};
}

}  // namespace sluice::tools

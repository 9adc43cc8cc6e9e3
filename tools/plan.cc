// `sluice plan`: a placement and a step's traffic, without creating anything.

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/config.h"
#include "core/json_text.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "offload/plan/traffic.h"
#include "offload/plan/zero_need.h"
#include "offload/run/factory.h"
#include "offload/run/report.h"
#include "tools/command.h"
#include "tools/json_file.h"
#include "tools/plan_gpus.h"
#include "tools/plan_model.h"
#include "tools/plan_options.h"
#include "tools/plan_tuned.h"
#include "tools/smallest_budgets.h"

namespace sluice::tools {

namespace {

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
  config.placement.lowest_param_tier = options.lowest_param_tier;
  config.placement.lowest_state_tier = options.lowest_state_tier;
  if (options.resident_elements_max)
    config.placement.resident_elements_max = *options.resident_elements_max;
  config.budgets = {BudgetOf(options.hbm), BudgetOf(options.pinned), BudgetOf(options.nvme)};
  config.nvme_paths = options.nvme_paths;
  if (config.nvme_paths.empty() && options.has_nvme()) config.nvme_paths = {"the drive"};
  config.chunk_elements = options.chunk_elements;
  return config;
}

// A device of another machine needs no driver here, only its budget.
absl::StatusOr<DeviceChoice> DeviceOf(const PlanOptions& options) {
  if (!options.device.starts_with("cuda"))
    return ChooseDevice(options.device == "host" ? DeviceKind::kHost : DeviceKind::kAuto, 0);
  if (!options.hbm.empty()) {
    return DeviceChoice{.kind = DeviceKind::kCuda,
                        .index = 0,
                        .reason = "asked for; no GPU of this machine was looked at",
                        .memory_free = std::nullopt};
  }
  absl::StatusOr<DeviceChoice> choice = ChooseDevice(DeviceKind::kCuda, 0);
  if (choice.ok()) return choice;
  return absl::Status(
      choice.status().code(),
      fmt::format("{}; to plan for another machine's GPU, give --hbm", Message(choice.status())));
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
              const std::string& described, Page* page) {
  page->Section("Model");
  if (!described.empty()) page->Row("model", described);
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
      Parts({{"parameters for good", p.hbm_fixed},
             {"room for the others", p.hbm_cache},
             {"gradients", p.grads_hbm},
             {"states", p.states_hbm}}));
  row("pinned", p.pinned(), plan.budgets.pinned,
      Parts({{"gradients", p.grads_pinned},
             {"parameters", p.params_pinned},
             {"states", p.states_pinned},
             {"buffers", p.buffers()}}));
  row("nvme", p.nvme(), plan.budgets.nvme,
      Parts(
          {{"gradients", p.grads_nvme}, {"parameters", p.params_nvme}, {"states", p.states_nvme}}));
  std::string least = p.least_pinned.Sentence();
  if (plan.device.kind == DeviceKind::kHost)
    least += fmt::format("; and {} of HBM, which is RAM on the host device", FormatBytes(p.hbm()));
  page->Row("least", least);
}

void AddTraffic(const StepTraffic& traffic, Page* page) {
  constexpr int64_t kManySteps = 10'000;
  page->Section("Each step moves");
  const auto row = [page](const char* label, Bytes bytes, const std::string& what) {
    page->Row(label, fmt::format("{:>10}  {}", FormatBytes(bytes), what));
  };
  row("into HBM", traffic.to_hbm, "parameters: for forward and backward, and updated");
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

std::string PlanText(const Plan& plan, const RuntimeConfig& config, const PlanTuned& tuned,
                     const std::string& described) {
  Page page;
  AddModel(plan.layout, plan.device, config, described, &page);
  AddPlacement(plan, &page);
  const StepTraffic traffic = TrafficOf(plan.layout, plan.placement);
  AddTraffic(traffic, &page);
  if (tuned) page.Row("NVMe's time", tuned.TimeText(traffic));
  page.List("To know", config.io_settings.warnings);
  return page.Text();
}

std::string RoundedUp(Bytes bytes) { return fmt::format("{}MiB", RoundUp(bytes, MiB(1)) / MiB(1)); }

// Says which budgets are too small, and what would do.
ExitCode CantWork(const PlanInput& input, const RuntimeConfig& config, const std::string& described,
                  const absl::Status& status, bool as_json) {
  const Budgets smallest = SmallestBudgets(input);
  struct Tier {
    const char* name;
    Bytes given, smallest;
  };
  const Tier tiers[] = {{"hbm", input.budgets.hbm, smallest.hbm},
                        {"pinned", input.budgets.pinned, smallest.pinned},
                        {"nvme", input.budgets.nvme, smallest.nvme}};
  Page page;
  AddModel(input.layout, input.device, config, described, &page);
  page.Section("Budgets");
  page.Row("", fmt::format("{:>10} {:>12}", "budget", "smallest"));
  Json report = {{"error", std::string(Message(status))}};
  std::string advice = "give at least";
  for (const Tier& tier : tiers) {
    const bool enough = tier.given >= tier.smallest;
    page.Row(tier.name,
             enough
                 ? fmt::format("{:>10} {:>12}", BudgetText(tier.given), FormatBytes(tier.smallest))
                 : fmt::format("{:>10} {:>12}  too small", FormatBytesDown(tier.given),
                               FormatBytesUp(tier.smallest)));
    report["budgets_bytes"][tier.name] = tier.given >= kNoLimit ? Json() : Json(tier.given.value());
    report["smallest_bytes"][tier.name] = tier.smallest.value();
    if (!enough) advice += fmt::format(" --{} {}", tier.name, RoundedUp(tier.smallest));
  }
  std::vector<std::string> ways = {advice};
  if (config.nvme_paths.empty()) {
    ways.emplace_back(
        "or give --nvme SIZE or --nvme-path DIR: without either nothing goes to NVMe");
  }
  page.List("Advice", ways);
  Print(as_json ? Text(report) + "\n" : page.Text());
  return Fail(Message(status));
}

std::string PlanJson(const Plan& plan, const RuntimeConfig& config, const PlanTuned& tuned,
                     const std::string& described) {
  Json json = Json::parse(PlacementJson(plan.layout, plan.device, plan.placement, plan.budgets));
  if (tuned) json["tuned"] = tuned.AsJson(TrafficOf(plan.layout, plan.placement), config);
  if (!described.empty()) json["model"] = described;
  return JsonText(json, 2);
}

ExitCode RunPlan(PlanOptions options) {
  const auto refuse = [&options](const absl::Status& status, ExitCode code) {
    if (options.json && code == kFailed)
      Print(Text(Json{{"error", std::string(Message(status))}}) + "\n");
    Fail(Message(status));
    return code;
  };
  const absl::StatusOr<HfModel> model = ReadModel(&options);
  if (!model.ok()) return refuse(model.status(), kUsage);
  if (options.gpus > 0 && !options.tuned.empty()) {
    return refuse(absl::InvalidArgumentError("--tuned: a plan for several GPUs says nothing of "
                                             "drives' time: leave out --tuned, or --gpus"),
                  kUsage);
  }
  if (options.gpus > 0) return PlanGpus(options, *model, ConfigOf(options));
  absl::StatusOr<DeviceChoice> device = DeviceOf(options);
  if (!device.ok()) return refuse(device.status(), kFailed);
  PlanTuned tuned;
  RuntimeConfig config = ConfigOf(options);
  if (const absl::Status status = tuned.Apply(options, &config); !status.ok())
    return refuse(status, kUsage);
  absl::StatusOr<PlanInput> input = MakePlanInput(model->spec, config, *std::move(device));
  if (!input.ok()) return refuse(input.status(), kFailed);
  absl::StatusOr<Placement> placement =
      MakePlacement(input->layout, input->budgets, input->options);
  if (!placement.ok())
    return CantWork(*input, config, model->description, placement.status(), options.json);
  const Plan plan{std::move(input->layout), std::move(input->device), input->budgets,
                  *std::move(placement)};
  return Print(options.json ? PlanJson(plan, config, tuned, model->description) + "\n"
                            : PlanText(plan, config, tuned, model->description));
}

// A whole number from 1 to `most`.
CLI::Option* AddGpuOption(CLI::App* app, const char* name, int64_t* count, int64_t most,
                          const char* help) {
  return app->add_option(name, *count, help)
      ->type_name("COUNT")
      ->check([most](const std::string& text) {
        const absl::StatusOr<int64_t> parsed = ParseCount(text);
        const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
        if (digits && parsed.ok() && *parsed <= most) return std::string();
        return fmt::format("'{}' is not a whole number of GPUs from 1 to {}", text, most);
      })
      ->group("Which ZeRO stage, on several GPUs");
}

void AddGpuOptions(CLI::App* app, PlanOptions* o) {
  CLI::Option* gpus =
      AddGpuOption(app, "--gpus", &o->gpus, kGpusMax,
                   "What every ZeRO stage and offload needs on so many GPUs, what fits,\n"
                   "and which to take. Budgets are then of a GPU, and of a host");
  AddGpuOption(app, "--gpus-per-host", &o->gpus_per_host, kGpusPerHostMax,
               "Of them on each host (default: all, but at most 8)")
      ->needs(gpus);
  app->add_option("--headroom", o->headroom_percent,
                  "Of HBM, in percent, that is to be left for activations (default 20)")
      ->type_name("PERCENT")
      ->check([](const std::string& text) {
        const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
        if (digits && !text.empty() && text.size() < 3) return std::string();
        return fmt::format("'{}' is not a whole number of percent from 0 to 99", text);
      })
      ->needs(gpus)
      ->group("Which ZeRO stage, on several GPUs");
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
  AddGpuOptions(app, options.get());
  AddBudget(app, "--hbm", &options->hbm, "Of HBM (default: from this machine)");
  AddBudget(app, "--pinned,--ram", &options->pinned, "Of pinned RAM (default: from this machine)");
  AddBudget(app, "--nvme", &options->nvme, "Of NVMe (default: no limit)");
  app->add_option("--nvme-path", options->nvme_paths,
                  "A directory for swap files, one per drive; it need not be there.\n"
                  "Without any, and without --nvme, nothing goes to NVMe")
      ->type_name("DIR")
      ->group("Budgets, like 512MiB");
  app->add_option("--config", options->config,
                  "A ds_config.json: types, how far down things may go, and the\n"
                  "section \"sluice\"; what is given here goes before it")
      ->type_name("FILE");
  app->add_option("--tuned", options->tuned,
                  "What `sluice tune` wrote: its directories, if no --nvme-path is given, its\n"
                  "size of a request, and how long its drives take for a step")
      ->type_name("FILE");
  app->add_option("--device", options->device, "auto (default), host or cuda")
      ->type_name("DEVICE")
      ->check(CLI::IsMember(kDevices));
  app->add_option("--chunk-elements", options->chunk_elements,
                  "Parameters whose states move together, a multiple of 4096")
      ->check(CLI::PositiveNumber);
  app->add_flag("--json", options->json, "As JSON (docs/api.md lists the keys)");
  app->footer(
      "\nThe model is a file, like a config.json of Transformers; or so many parameters in equal\n"
      "units; or a GPT of --layers and --hidden, whose embedding has --vocab rows, or what the\n"
      "blocks leave of the parameters. The plan may be for another machine: with all budgets\n"
      "given, this one is not looked at. Examples:\n"
      "  sluice plan 7B --layers 32 --hidden 4096 --hbm 4GiB --pinned 32GiB --nvme 200GiB\n"
      "  sluice plan config.json --config ds_config.json --device cuda --hbm 20GiB\n"
      "  sluice plan 7B --gpus 4 --hbm 40GiB --ram 256GiB --nvme 2TiB");
  return {.app = app, .run = [options] { return RunPlan(*options); }};
}

}  // namespace sluice::tools

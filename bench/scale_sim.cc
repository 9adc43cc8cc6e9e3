// Training on many ranks in virtual time, by the real schedule (offload/sim/many_ranks.h): how long
// a step takes on machines whose rates were published, beside its floor. Without options the tables
// of docs/scale.md; with --stage one case; with --validate DIR real runs on this machine beside the
// same in simulation, DIR being where drives' files go. --json FILE writes the figures.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>

#include "CLI/CLI.hpp"
#include "bench/scale_tables.h"
#include "bench/scale_validate.h"
#include "core/status.h"
#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace sluice {
namespace {

using Json = nlohmann::ordered_json;

// One row: the case, its floor, and the same with a network that takes no time. What that saves is
// what of the step is exposed of the collectives.
absl::StatusOr<Json> RowOf(const std::string& table, const std::string& name, const ScaleCase& c,
                           bool exposed) {
  SLUICE_ASSIGN_OR_RETURN(const ScaleResult result, Simulate(c));
  const FloorTerms& floor = result.floor;
  const double flops = (c.recompute ? 8 : 6) * c.parameters * c.tokens;
  Json row{{"table", table},
           {"name", name},
           {"machine", c.machine.name},
           {"hosts", c.hosts},
           {"ranks", c.ranks()},
           {"all_simulated", !c.mirrored || c.hosts == 1},
           {"stage", c.stage},
           {"states", Name(c.states)},
           {"parameters_in", Name(c.stage == 3 ? c.params : Tier::kHbm)},
           {"parameters", c.parameters},
           {"units", c.units},
           {"tokens", c.tokens},
           {"overlap", c.overlap},
           {"step_seconds", result.step},
           {"floor_seconds", floor.total},
           {"ratio", result.ratio()},
           {"floor",
            {{"forward", floor.forward},
             {"backward", floor.backward},
             {"drive", floor.io},
             {"update", floor.update},
             {"links_forward", floor.links_forward},
             {"links_backward", floor.links_backward}}},
           {"teraflops", flops / result.step / 1e12},
           {"sent_bytes", result.sent.value()},
           {"scale", result.scale},
           {"control_seconds", result.training.control_seconds / (c.steps - 1)},
           {"simulated_in_seconds", result.training.real_seconds}};
  if (exposed) {
    ScaleCase free = c;
    free.free_network = true;
    SLUICE_ASSIGN_OR_RETURN(const ScaleResult without, Simulate(free));
    row["exposed"] = 1 - without.step / result.step;
  }
  fmt::print(
      "{:14} {:44} {:5} {:3} x {:2} stage {} {:4} {:4} {:6.0f} tokens{}: {:9.4f} s, {:.3f} of "
      "the floor, {:5.1f} TF{}\n",
      table, name, c.machine.name, c.hosts, c.machine.ranks_per_host, c.stage, Name(c.states),
      Name(c.stage == 3 ? c.params : Tier::kHbm), c.tokens, c.overlap ? "" : ", no overlap",
      result.step, result.ratio(), flops / result.step / 1e12,
      exposed ? fmt::format(", {:.3f} exposed", row["exposed"].get<double>()) : "");
  std::fflush(stdout);
  return row;
}

absl::StatusOr<Json> ValidationJson(const std::string& directory, int repetitions) {
  SLUICE_ASSIGN_OR_RETURN(const Validation validation, Validate(directory, repetitions, 10));
  Json rows = Json::array();
  for (const Validation::Row& row : validation.rows) {
    std::vector<double> steps = row.steps;
    std::sort(steps.begin(), steps.end());
    const auto at = [&](double share) {
      return steps[static_cast<size_t>(share * static_cast<double>(steps.size() - 1))];
    };
    fmt::print("{:40} real {:.4f} s ({:.4f} to {:.4f}), simulated {:.4f} s, ratio {:.3f}\n",
               row.of.name, row.real(), at(0.25), at(0.75), row.simulated,
               row.simulated / row.real());
    rows.push_back({{"name", row.of.name},
                    {"ranks", row.of.ranks},
                    {"stage", row.of.stage},
                    {"overlap", row.of.overlap},
                    {"real_seconds", row.real()},
                    {"real_quartiles", {at(0.25), at(0.75)}},
                    {"simulated_seconds", row.simulated},
                    {"ratio", row.simulated / row.real()},
                    {"drive_bytes_per_second", row.drive()}});
  }
  const MeasuredRates& m = validation.median;
  return Json{{"repetitions", repetitions},
              {"rates",
               {{"update", m.update},
                {"update_with_sums", m.stream},
                {"copy", m.copy},
                {"sum", m.sum},
                {"take", m.take},
                {"exchange", m.exchange},
                {"small_operation_seconds", m.round}}},
              {"rows", rows}};
}

struct Options {
  std::string json, validate, table, machine = "h100", states = "ram", params = "ram";
  int repetitions = 5, stage = -1;
  ScaleCase one;
  double local = 0, network = 0, drive = 0, flops = 0;  // GB/s, TFLOPS; 0: the machine's
};

absl::Status SetUp(Options* options) {
  ScaleCase& c = options->one;
  const Machine* machine = FindMachine(options->machine);
  if (machine == nullptr)
    return absl::InvalidArgumentError("machines are dgx2, a100 and h100, not " + options->machine);
  const std::pair<const char*, Tier> tiers[] = {
      {"hbm", Tier::kHbm}, {"ram", Tier::kPinned}, {"nvme", Tier::kNvme}};
  for (const auto& [name, tier] : tiers) {
    if (options->states == name) c.states = tier;
    if (options->params == name) c.params = tier;
  }
  c.machine = *machine;
  c.stage = options->stage;
  if (options->local > 0) c.machine.local_bytes_per_second = options->local * 1e9;
  if (options->network > 0) c.machine.network_bytes_per_second = options->network * 1e9;
  if (options->drive > 0) c.machine.drive_bytes_per_second = options->drive * 1e9;
  if (options->flops > 0) c.machine.flops = options->flops * 1e12;
  return absl::OkStatus();
}

absl::Status Run(Options options) {
  Json json;
  if (!options.validate.empty()) {
    SLUICE_ASSIGN_OR_RETURN(json["validation"],
                            ValidationJson(options.validate, options.repetitions));
  } else if (options.stage >= 0) {
    SLUICE_RETURN_IF_ERROR(SetUp(&options));
    SLUICE_ASSIGN_OR_RETURN(Json row, RowOf("case", "", options.one, true));
    fmt::print("floor {:.4f} s: {}\n", row["floor_seconds"].get<double>(), row["floor"].dump());
    json["rows"].push_back(std::move(row));
  } else {
    for (const ScaleRow& row : ScaleRows()) {
      if (!options.table.empty() && row.table.find(options.table) != 0) continue;
      SLUICE_ASSIGN_OR_RETURN(Json made,
                              RowOf(row.table, row.name, row.of, row.table == "collectives"));
      json["rows"].push_back(std::move(made));
    }
  }
  if (!options.json.empty()) std::ofstream(options.json) << json.dump(1) << "\n";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app("Training on many ranks in virtual time, by the real schedule");
  Options options;
  ScaleCase& one = options.one;
  app.add_option("--json", options.json, "write the figures here");
  app.add_option("--validate", options.validate, "real runs beside it; files go into this folder");
  app.add_option("--repetitions", options.repetitions, "of each real run");
  app.add_option("--table", options.table, "only this one: hosts, collectives, infinity, ...");
  app.add_option("--stage", options.stage, "one case: ZeRO 0 to 3");
  app.add_option("--machine", options.machine, "dgx2, a100 or h100");
  app.add_option("--hosts", one.hosts, "of the machine's GPUs each");
  app.add_option("--states", options.states, "hbm, ram or nvme");
  app.add_option("--params", options.params, "likewise, at stage 3");
  app.add_option("--parameters", one.parameters, "7e9");
  app.add_option("--units", one.units, "layers, all as large");
  app.add_option("--tokens", one.tokens, "a GPU and step");
  app.add_option("--micro-steps", one.micro_steps, "that a step's tokens are cut into");
  app.add_option("--local-gb", options.local, "GB/s of a GPU to those of its host");
  app.add_option("--network-gb", options.network, "GB/s of a GPU to other hosts");
  app.add_option("--drive-gb", options.drive, "GB/s of a host's drives");
  app.add_option("--teraflops", options.flops, "that a model gets of a GPU");
  app.add_flag("--ring", one.ring, "gathers take steps as a ring has");
  app.add_flag("!--no-overlap", one.overlap, "each movement waits for the one before");
  app.add_flag("!--all-ranks", one.mirrored, "simulate every host's");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  fmt::print(stderr, "{}\n", Message(status));
  return 1;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  try {
    return sluice::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fputs(error.what(), stderr);
    return 1;
  }
}

#include "bench/scale_tables.h"

#include "fmt/format.h"

namespace sluice {

namespace {

struct Setting {
  const char* name;
  int stage;
  Tier states;
  Tier params;
  double parameters;
  uint32_t units;
  double tokens;
};

ScaleCase CaseOf(const Machine& machine, const Setting& setting, uint32_t hosts) {
  return {.machine = machine,
          .hosts = hosts,
          .stage = setting.stage,
          .states = setting.states,
          .params = setting.params,
          .parameters = setting.parameters,
          .units = setting.units,
          .tokens = setting.tokens};
}

constexpr Setting kSettings[] = {
    {"7B, stage 0, states in HBM", 0, Tier::kHbm, Tier::kHbm, 7e9, 32, 8192},
    {"7B, stage 1, states in HBM", 1, Tier::kHbm, Tier::kHbm, 7e9, 32, 8192},
    {"7B, stage 2, states in RAM", 2, Tier::kPinned, Tier::kHbm, 7e9, 32, 8192},
    {"13B, stage 3, states in HBM", 3, Tier::kHbm, Tier::kHbm, 13e9, 40, 8192},
    {"70B, stage 3, states and parameters in RAM", 3, Tier::kPinned, Tier::kPinned, 70e9, 80, 8192},
    {"70B, stage 3, states and parameters on NVMe", 3, Tier::kNvme, Tier::kNvme, 70e9, 80, 8192},
};

void AddHosts(std::vector<ScaleRow>* rows) {
  for (const Machine& machine : {DgxH100(), DgxA100()}) {
    for (const Setting& setting : kSettings) {
      if (setting.stage == 0 && machine.name != "h100") continue;  // the slowest to simulate
      for (const uint32_t hosts : {1u, 8u, 16u, 32u, 64u}) {
        if (machine.name != "h100" && hosts != 1 && hosts != 8 && hosts != 64) continue;
        rows->push_back({"hosts", setting.name, CaseOf(machine, setting, hosts)});
      }
    }
  }
}

void AddCollectives(std::vector<ScaleRow>* rows) {
  for (const uint32_t hosts : {1u, 8u, 64u}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const double tokens : {8192.0, 2048.0}) {
        const Setting setting{"7B, states in HBM", stage, Tier::kHbm, Tier::kHbm, 7e9, 32, tokens};
        rows->push_back({"collectives", setting.name, CaseOf(DgxH100(), setting, hosts)});
      }
    }
  }
}

// What a GPU has of tokens is not in our record of their paper, so one number for all; and layers
// are gathered several at a time, since a unit of 512 ranks can't be scaled down below 512 cells.
// All that a step takes is in proportion to the parameters, so a fiftieth of them shows the same in
// a fiftieth of the time, with fewer rounds of agreement to simulate.
void AddInfinity(std::vector<ScaleRow>* rows) {
  Machine machine = Dgx2();
  machine.flops = 50e12;  // what a V100 reached at best in their figures
  const auto add = [&](const char* table, const char* name, double parameters, uint32_t hosts) {
    const Setting setting{name, 3, Tier::kNvme, Tier::kNvme, parameters / 50, 16, 2048};
    ScaleCase c = CaseOf(machine, setting, hosts);
    rows->push_back({table, name, c});
  };
  add("infinity sizes", "0.5T", 0.5e12, 32);
  add("infinity sizes", "5T", 5e12, 32);
  add("infinity sizes", "20T", 20e12, 32);
  for (const uint32_t hosts : {1u, 4u, 16u, 32u}) add("infinity hosts", "1T", 1e12, hosts);
}

void AddOverlap(std::vector<ScaleRow>* rows) {
  for (const Setting& setting : {kSettings[2], kSettings[5]}) {
    for (const uint32_t hosts : {1u, 8u}) {
      for (const bool overlap : {true, false}) {
        ScaleCase c = CaseOf(DgxH100(), setting, hosts);
        c.overlap = overlap;
        if (setting.states == Tier::kPinned) c.tokens = 2048;
        rows->push_back({"overlap", setting.name, c});
      }
    }
  }
}

void AddFull(std::vector<ScaleRow>* rows) {
  for (const bool mirrored : {true, false}) {
    for (const Setting& setting : {kSettings[1], kSettings[3], kSettings[5]}) {
      for (const uint32_t hosts : {2u, 4u}) {
        if (setting.states == Tier::kNvme && hosts > 2) continue;
        ScaleCase c = CaseOf(DgxH100(), setting, hosts);
        c.mirrored = mirrored;
        c.cells_of_shard = 2;
        rows->push_back({"full", setting.name, c});
      }
    }
  }
}

}  // namespace

const char* Name(Tier tier) {
  switch (tier) {
    case Tier::kHbm:
      return "HBM";
    case Tier::kPinned:
      return "RAM";
    case Tier::kNvme:
      return "NVMe";
  }
  return "?";
}

std::vector<ScaleRow> ScaleRows() {
  std::vector<ScaleRow> rows;
  AddHosts(&rows);
  AddCollectives(&rows);
  AddInfinity(&rows);
  AddOverlap(&rows);
  AddFull(&rows);
  return rows;
}

}  // namespace sluice

// bench/scale_tables.h
//
// The tables of docs/scale.md: which cases they are of, and what each row says.

#ifndef SLUICE_BENCH_SCALE_TABLES_H_
#define SLUICE_BENCH_SCALE_TABLES_H_

#include <string>
#include <vector>

#include "offload/sim/scale_cases.h"

namespace sluice {

struct ScaleRow {
  std::string table;
  std::string name;
  ScaleCase of;
};
// "hosts": one to 64 hosts, against the floor. "collectives": what of a step is exposed, by stage.
// "infinity": the shapes that ZeRO-Infinity's authors have published. "overlap": without it.
// "full": all ranks simulated, beside one host that stands for all.
std::vector<ScaleRow> ScaleRows();

const char* Name(Tier tier);

}  // namespace sluice

#endif  // SLUICE_BENCH_SCALE_TABLES_H_

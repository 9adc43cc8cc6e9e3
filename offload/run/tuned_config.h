// offload/run/tuned_config.h
//
// A file of tuned settings (nvme/tuned.h) and what a runtime was told itself: how transfers are
// made, and, for the report, where each setting came from.

#ifndef SLUICE_OFFLOAD_RUN_TUNED_CONFIG_H_
#define SLUICE_OFFLOAD_RUN_TUNED_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace sluice {

struct RuntimeConfig;

enum class SettingFrom { kDefault, kGiven, kTuned };
const char* Name(SettingFrom from);  // "default", "given", "tuned"

struct IoSettings {
  std::string tuned_file;             // empty: none was given
  std::vector<std::string> warnings;  // of what it is not of this machine or these drives
  SettingFrom chunk_elements = SettingFrom::kDefault;
  SettingFrom depth = SettingFrom::kDefault;
  SettingFrom batch = SettingFrom::kDefault;
  SettingFrom engine = SettingFrom::kDefault;
  SettingFrom drive_rates = SettingFrom::kDefault;
};

// Takes from `file` what `config`, whose drives are known, was not given: what its io_settings call
// kDefault. Errors: those of reading the file (ReadTuned).
absl::Status ApplyTuned(const std::string& file, RuntimeConfig* config);
// A depth from a file is what is best in all: each of several ranks of a host has its part of it.
void ShareTunedDepth(uint32_t local_ranks, RuntimeConfig* config);

}  // namespace sluice

#endif  // SLUICE_OFFLOAD_RUN_TUNED_CONFIG_H_

#include "tests/comm/fake_nccl/faults.h"

#include <cstdlib>
#include <cstring>
#include <sstream>

namespace fake_nccl {

Faults& Faults::Get() {
  static auto* const faults = new Faults;
  return *faults;
}

Faults::Faults() {
  if (const char* const words = std::getenv("SLUICE_FAKE_NCCL")) Set(words);
}

void Faults::Set(const char* words) {
  const std::lock_guard lock(mutex_);
  entries_.clear();
  for (Count& count : counts_) count.calls = 0;
  met_ = 0;
  version_ = 22703;
  deaths_seen_ = false;
  std::stringstream all(words);
  for (std::string word; std::getline(all, word, ',');) {
    if (word.starts_with("version=")) {
      version_ = std::atoi(word.c_str() + std::strlen("version="));
    } else if (word == "deaths=seen") {
      deaths_seen_ = true;
    } else {
      std::stringstream parts(word);
      Entry entry;
      std::string calls, what;
      if (!std::getline(parts, entry.function, ':') || !std::getline(parts, calls, ':') ||
          !std::getline(parts, what))
        std::abort();
      entry.calls_left = std::atoi(calls.c_str());
      entry.fault.kind = what.starts_with("error")  ? Fault::Kind::kError
                         : what.starts_with("late") ? Fault::Kind::kLate
                                                    : Fault::Kind::kNever;
      entry.fault.result = static_cast<sluice::NcclResult>(what.back() - '0');
      entries_.push_back(entry);
    }
  }
}

Fault Faults::Next(const char* function) {
  const std::lock_guard lock(mutex_);
  for (Count& count : counts_) {
    if (count.function == nullptr) count.function = function;
    if (std::strcmp(count.function, function) != 0) continue;
    ++count.calls;
    break;
  }
  Fault fault;
  for (Entry& entry : entries_) {
    if (entry.function != function || --entry.calls_left != 0) continue;
    ++met_;
    fault = entry.fault;
  }
  return fault;
}

int Faults::met() {
  const std::lock_guard lock(mutex_);
  return met_;
}
int Faults::calls(const char* function) {
  const std::lock_guard lock(mutex_);
  for (const Count& count : counts_) {
    if (count.function != nullptr && std::strcmp(count.function, function) == 0) return count.calls;
  }
  return 0;
}
int Faults::version() {
  const std::lock_guard lock(mutex_);
  return version_;
}
bool Faults::deaths_seen() {
  const std::lock_guard lock(mutex_);
  return deaths_seen_;
}

}  // namespace fake_nccl

// tests/comm/fake_nccl/faults.h
//
// Which calls of the fake library fail, and how: see fake_nccl.h for the words.
//
// Threads: any. Asking allocates nothing.

#ifndef SLUICE_TESTS_COMM_FAKE_NCCL_FAULTS_H_
#define SLUICE_TESTS_COMM_FAKE_NCCL_FAULTS_H_

#include <mutex>
#include <string>
#include <vector>

#include "comm/nccl_api.h"

namespace fake_nccl {

struct Fault {
  enum class Kind { kNone, kError, kLate, kNever };
  Kind kind = Kind::kNone;
  sluice::NcclResult result = sluice::kNcclSuccess;
};

class Faults {
 public:
  static Faults& Get();

  void Set(const char* words);
  // What befalls this call of `function`.
  Fault Next(const char* function);
  int met();
  int calls(const char* function);
  int version();
  bool deaths_seen();

 private:
  Faults();
  struct Entry {
    std::string function;
    int calls_left;
    Fault fault;
  };

  std::mutex mutex_;
  std::vector<Entry> entries_;  // this and below guarded by mutex_
  struct Count {
    const char* function = nullptr;
    int calls = 0;
  };
  Count counts_[32];
  int met_ = 0;
  int version_ = 22703;
  bool deaths_seen_ = false;
};

}  // namespace fake_nccl

#endif  // SLUICE_TESTS_COMM_FAKE_NCCL_FAULTS_H_

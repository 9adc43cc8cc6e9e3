// Files in memory that can lose power: what was not synced is then lost, done or torn, in any
// combination, names and bytes alike. And a call of them can be made to fail.

#ifndef SLUICE_TESTS_OFFLOAD_SIM_FILES_H_
#define SLUICE_TESTS_OFFLOAD_SIM_FILES_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "offload/checkpoint/files.h"

namespace sluice {

class SimFiles final : public Files {
 public:
  SimFiles();

  // Of `kinds` possibilities, one: what became of something that was not synced.
  using Choose = std::function<int(int kinds)>;
  // What is there after a loss of power now.
  std::unique_ptr<SimFiles> AfterPowerCut(const Choose& choose) const;
  // How much is not synced: of names, and of bytes.
  size_t unsynced() const;

  // Heard after every call that changes or syncs something.
  std::function<void()> after_call;
  // The call of this number (from 1) fails with `error`; persistently: all from it on do.
  uint64_t fail_at = 0;
  bool persistently = false;
  absl::Status error;
  uint64_t calls = 0;
  bool can_exchange = true;
  bool can_link = true;

  // What tests look at and break: no calls.
  std::vector<std::string> AllFiles() const;  // paths, sorted
  std::string* BytesOf(const std::string& path);
  bool Has(const std::string& path) const { return Find(path) >= 0; }
  std::unique_ptr<SimFiles> Copy() const;

  absl::StatusOr<std::unique_ptr<OutputFile>> Create(const std::string& path,
                                                     uint64_t size) override;
  absl::StatusOr<std::unique_ptr<InputFile>> Open(const std::string& path) override;
  absl::Status MakeDirectory(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Exchange(const std::string& a, const std::string& b) override;
  absl::Status Link(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  bool IsDirectory(const std::string& path) override;

 private:
  friend class SimOutput;
  using Names = std::map<std::string, int>;
  struct Write {
    uint64_t offset;
    std::string bytes;  // empty: the file has at least `offset` bytes then
  };
  struct Node {
    bool directory = false;
    std::string bytes, durable_bytes;
    std::vector<Write> unsynced;
    Names names, durable_names;
  };
  // Names that got other nodes (-1: none) at once.
  struct Change {
    struct Part {
      int directory;
      std::string name;
      int node;
    };
    std::vector<Part> parts;
  };

  int Find(const std::string& path) const;
  // The directory and the last name of a path; the first is -1 if it isn't there.
  std::pair<int, std::string> Split(const std::string& path) const;
  absl::Status Call(const char* what, const std::string& path);
  absl::Status Made(Change change);
  static void Apply(const Write& write, std::string* bytes);
  void AddFiles(int node, const std::string& path, std::vector<std::string>* paths) const;

  std::vector<Node> nodes_;
  std::vector<Change> changes_;  // not durable, in order
};

}  // namespace sluice

#endif  // SLUICE_TESTS_OFFLOAD_SIM_FILES_H_

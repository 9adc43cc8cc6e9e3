#include "tests/offload/sim_files.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/status.h"

namespace sluice {

namespace {

absl::Status NotThere(const std::string& path) {
  return absl::NotFoundError(path + ": no such file or directory");
}

class SimInput final : public InputFile {
 public:
  SimInput(std::string bytes, std::string path)
      : bytes_(std::move(bytes)), path_(std::move(path)) {}
  uint64_t size() const override { return bytes_.size(); }
  absl::Status Read(uint64_t offset, MemoryView to) const override {
    if (offset + to.size() > bytes_.size()) return absl::DataLossError(path_ + " ends early");
    std::memcpy(to.data(), bytes_.data() + offset, to.size());
    return absl::OkStatus();
  }

 private:
  const std::string bytes_, path_;
};

}  // namespace

class SimOutput final : public OutputFile {
 public:
  SimOutput(SimFiles* files, int node, std::string path)
      : files_(files), node_(node), path_(std::move(path)) {}

  absl::Status Write(uint64_t offset, ConstMemoryView bytes) override {
    const absl::Status status = files_->Call("writing", path_);
    const size_t n = status.ok() ? bytes.size() : bytes.size() / 2;
    if (n == 0) return status;
    const SimFiles::Write write{offset, {reinterpret_cast<const char*>(bytes.data()), n}};
    SimFiles::Node& node = files_->nodes_[static_cast<size_t>(node_)];
    SimFiles::Apply(write, &node.bytes);
    node.unsynced.push_back(write);
    if (status.ok() && files_->after_call) files_->after_call();
    return status;
  }

  absl::Status Sync() override {
    const absl::Status status = files_->Call("syncing", path_);
    SimFiles::Node& node = files_->nodes_[static_cast<size_t>(node_)];
    node.unsynced.clear();  // failed: what it lost is lost
    if (status.ok()) node.durable_bytes = node.bytes;
    if (status.ok() && files_->after_call) files_->after_call();
    return status;
  }

 private:
  SimFiles* const files_;
  const int node_;
  const std::string path_;
};

SimFiles::SimFiles() { nodes_.push_back({.directory = true}); }

std::unique_ptr<SimFiles> SimFiles::Copy() const {
  auto copy = std::make_unique<SimFiles>();
  copy->nodes_ = nodes_;
  copy->changes_ = changes_;
  copy->can_exchange = can_exchange;
  copy->can_link = can_link;
  return copy;
}

std::unique_ptr<SimFiles> SimFiles::AfterPowerCut(const Choose& choose) const {
  auto after = Copy();
  after->changes_.clear();
  for (Node& node : after->nodes_) {
    for (Write write : node.unsynced) {
      const int chosen = choose(write.bytes.size() > 1 ? 3 : 2);
      if (chosen == 2) write.bytes.resize(write.bytes.size() / 2);
      if (chosen != 0) Apply(write, &node.durable_bytes);
    }
    node.unsynced.clear();
    node.bytes = node.durable_bytes;
  }
  for (const Change& change : changes_) {
    if (choose(2) == 0) continue;
    for (const Change::Part& part : change.parts) {
      Names& names = after->nodes_[static_cast<size_t>(part.directory)].durable_names;
      if (part.node < 0) {
        names.erase(part.name);
      } else {
        names[part.name] = part.node;
      }
    }
  }
  for (Node& node : after->nodes_) node.names = node.durable_names;
  return after;
}

size_t SimFiles::unsynced() const {
  size_t count = changes_.size();
  for (const Node& node : nodes_) count += node.unsynced.size();
  return count;
}

void SimFiles::Apply(const Write& write, std::string* bytes) {
  bytes->resize(std::max(bytes->size(), write.offset + write.bytes.size()));
  bytes->replace(write.offset, write.bytes.size(), write.bytes);
}

std::pair<int, std::string> SimFiles::Split(const std::string& path) const {
  const size_t slash = path.rfind('/');
  const int directory = slash == std::string::npos ? 0 : Find(path.substr(0, slash));
  const bool is_one = directory >= 0 && nodes_[static_cast<size_t>(directory)].directory;
  return {is_one ? directory : -1, path.substr(slash + 1)};
}

int SimFiles::Find(const std::string& path) const {
  if (path.empty() || path == "." || path == "/") return 0;
  const auto [directory, name] = Split(path);
  if (directory < 0) return -1;
  const Names& names = nodes_[static_cast<size_t>(directory)].names;
  const auto found = names.find(name);
  return found == names.end() ? -1 : found->second;
}

absl::Status SimFiles::Call(const char* what, const std::string& path) {
  ++calls;
  const bool fails = fail_at != 0 && (calls == fail_at || (persistently && calls > fail_at));
  return fails ? Annotate(error, std::string(what) + " " + path) : absl::OkStatus();
}

absl::Status SimFiles::Made(Change change) {
  for (const Change::Part& part : change.parts) {
    Names& names = nodes_[static_cast<size_t>(part.directory)].names;
    if (part.node < 0) {
      names.erase(part.name);
    } else {
      names[part.name] = part.node;
    }
  }
  changes_.push_back(std::move(change));
  if (after_call) after_call();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<OutputFile>> SimFiles::Create(const std::string& path,
                                                             uint64_t size) {
  SLUICE_RETURN_IF_ERROR(Call("creating", path));
  const auto [directory, name] = Split(path);
  if (directory < 0) return NotThere(path);
  if (Find(path) >= 0) return absl::AlreadyExistsError(path + " is there");
  const int node = static_cast<int>(nodes_.size());
  nodes_.push_back({.bytes = std::string(size, '\0'), .unsynced = {{size, ""}}});
  SLUICE_RETURN_IF_ERROR(Made({{{directory, name, node}}}));
  return std::make_unique<SimOutput>(this, node, path);
}

absl::StatusOr<std::unique_ptr<InputFile>> SimFiles::Open(const std::string& path) {
  SLUICE_RETURN_IF_ERROR(Call("opening", path));
  const int node = Find(path);
  if (node < 0) return NotThere(path);
  if (nodes_[static_cast<size_t>(node)].directory)
    return absl::UnavailableError(path + " is not a regular file");
  return std::make_unique<SimInput>(nodes_[static_cast<size_t>(node)].bytes, path);
}

absl::Status SimFiles::MakeDirectory(const std::string& path) {
  SLUICE_RETURN_IF_ERROR(Call("making", path));
  const auto [directory, name] = Split(path);
  if (directory < 0) return NotThere(path);
  if (Find(path) >= 0) return absl::AlreadyExistsError(path + " is there");
  nodes_.push_back({.directory = true});
  return Made({{{directory, name, static_cast<int>(nodes_.size()) - 1}}});
}

absl::Status SimFiles::SyncDirectory(const std::string& path) {
  SLUICE_RETURN_IF_ERROR(Call("syncing", path));
  const int node = Find(path);
  if (node < 0) return NotThere(path);
  std::vector<Change> kept;
  for (Change& change : changes_) {
    const bool here = std::any_of(change.parts.begin(), change.parts.end(),
                                  [node](const Change::Part& p) { return p.directory == node; });
    if (!here) {
      kept.push_back(std::move(change));
      continue;
    }
    for (const Change::Part& part : change.parts) {
      Names& names = nodes_[static_cast<size_t>(part.directory)].durable_names;
      if (part.node < 0) {
        names.erase(part.name);
      } else {
        names[part.name] = part.node;
      }
    }
  }
  changes_ = std::move(kept);
  if (after_call) after_call();
  return absl::OkStatus();
}

absl::Status SimFiles::Rename(const std::string& from, const std::string& to) {
  SLUICE_RETURN_IF_ERROR(Call("renaming", from));
  const int node = Find(from), old = Find(to);
  const auto [from_directory, from_name] = Split(from);
  const auto [to_directory, to_name] = Split(to);
  if (node < 0 || to_directory < 0) return NotThere(from);
  if (old >= 0 && !nodes_[static_cast<size_t>(old)].names.empty())
    return absl::UnavailableError(to + " is not empty");
  return Made({{{from_directory, from_name, -1}, {to_directory, to_name, node}}});
}

absl::Status SimFiles::Exchange(const std::string& a, const std::string& b) {
  SLUICE_RETURN_IF_ERROR(Call("exchanging", a));
  if (!can_exchange) return absl::UnimplementedError("no exchange here");
  const int first = Find(a), second = Find(b);
  if (first < 0 || second < 0) return NotThere(first < 0 ? a : b);
  const auto [a_directory, a_name] = Split(a);
  const auto [b_directory, b_name] = Split(b);
  return Made({{{a_directory, a_name, second}, {b_directory, b_name, first}}});
}

absl::Status SimFiles::Link(const std::string& from, const std::string& to) {
  SLUICE_RETURN_IF_ERROR(Call("linking", from));
  if (!can_link) return absl::UnavailableError("no links here");
  const int node = Find(from);
  const auto [directory, name] = Split(to);
  if (node < 0 || directory < 0) return NotThere(from);
  if (Find(to) >= 0) return absl::AlreadyExistsError(to + " is there");
  return Made({{{directory, name, node}}});
}

absl::Status SimFiles::Remove(const std::string& path) {
  SLUICE_RETURN_IF_ERROR(Call("removing", path));
  const int node = Find(path);
  if (node < 0) return NotThere(path);
  if (!nodes_[static_cast<size_t>(node)].names.empty())
    return absl::UnavailableError(path + " is not empty");
  const auto [directory, name] = Split(path);
  return Made({{{directory, name, -1}}});
}

absl::StatusOr<std::vector<std::string>> SimFiles::List(const std::string& path) {
  SLUICE_RETURN_IF_ERROR(Call("listing", path));
  const int node = Find(path);
  if (node < 0 || !nodes_[static_cast<size_t>(node)].directory) return NotThere(path);
  std::vector<std::string> names;
  for (const auto& [name, child] : nodes_[static_cast<size_t>(node)].names) names.push_back(name);
  return names;
}

bool SimFiles::IsDirectory(const std::string& path) {
  const int node = Find(path);
  return node >= 0 && nodes_[static_cast<size_t>(node)].directory;
}

void SimFiles::AddFiles(int node, const std::string& path, std::vector<std::string>* paths) const {
  for (const auto& [name, child] : nodes_[static_cast<size_t>(node)].names) {
    const std::string full = path.empty() ? name : path + "/" + name;
    if (nodes_[static_cast<size_t>(child)].directory) {
      AddFiles(child, full, paths);
    } else {
      paths->push_back(full);
    }
  }
}

std::vector<std::string> SimFiles::AllFiles() const {
  std::vector<std::string> paths;
  AddFiles(0, "", &paths);
  return paths;
}

std::string* SimFiles::BytesOf(const std::string& path) {
  const int node = Find(path);
  return node < 0 ? nullptr : &nodes_[static_cast<size_t>(node)].bytes;
}

}  // namespace sluice

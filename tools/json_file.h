// tools/json_file.h
//
// A JSON file of the user's, read whole, and its values, checked as they are asked for. What is
// wrong is an InvalidArgument that names the file and the key.

#ifndef SLUICE_TOOLS_JSON_FILE_H_
#define SLUICE_TOOLS_JSON_FILE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace sluice::tools {

using Json = nlohmann::ordered_json;
// Keys in the order of the alphabet, found fast: for objects that have very many.
using SortedJson = nlohmann::json;

// `json` as text. What isn't UTF-8 in it, such as a path's bytes, is written out (JsonText).
std::string Text(const Json& json);

// The object that a regular file of at most 16 MiB holds; comments are allowed. Errors:
// InvalidArgument naming the file; those of reading it.
absl::StatusOr<Json> ReadJsonFile(const std::string& path);

// The object that `text` is; `source`: for messages. Errors: InvalidArgument naming it.
absl::StatusOr<Json> ParseObject(const std::string& text, const std::string& source);
absl::StatusOr<SortedJson> ParseSortedObject(const std::string& text, const std::string& source);

// An object whose values are taken one by one. The first that won't do is remembered, and what was
// asked for then has its default, so that a reader checks once, at its end.
class Fields {
 public:
  // source: for messages. `object` must live as long, and be an object.
  Fields(const Json& object, std::string source) : object_(object), source_(std::move(source)) {}

  bool Has(std::string_view key) const;  // and not null
  // Whole numbers from `low` on; without a default they must be there.
  int64_t Whole(std::string_view key, std::optional<int64_t> otherwise, int64_t low = 1);
  bool Flag(std::string_view key, bool otherwise);
  std::string Word(std::string_view key, std::string_view otherwise);
  // A section: an object, or an empty one if it is not there.
  const Json& Section(std::string_view key);

  void Refuse(std::string_view key, std::string_view what);
  const absl::Status& status() const { return status_; }
  const std::string& source() const { return source_; }

 private:
  const Json* Find(std::string_view key) const;

  const Json& object_;
  std::string source_;
  absl::Status status_;
};

}  // namespace sluice::tools

#endif  // SLUICE_TOOLS_JSON_FILE_H_

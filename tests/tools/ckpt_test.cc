// `sluice ckpt`, over checkpoints of random models. The oracle for weights is the model's values,
// converted one by one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "core/float_bits.h"
#include "tests/offload/saved_model.h"
#include "tests/tools/run_sluice.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

// Of the safetensors file: what its header says, and the bytes of each tensor.
struct Weights {
  std::map<std::string, Json> entries;
  std::map<std::string, std::string> bytes;
};

void AddFile(const std::string& path, Weights* to) {
  const std::string file = ReadFile(path);
  uint64_t length = 0, end = 0;
  ASSERT_GE(file.size(), sizeof(length)) << path;
  std::memcpy(&length, file.data(), sizeof(length));
  EXPECT_EQ(length % 8, 0u);
  const auto header = nlohmann::ordered_json::parse(file.substr(8, length), nullptr, false);
  ASSERT_FALSE(header.is_discarded()) << path;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto first = entry["data_offsets"][0].get<uint64_t>();
    EXPECT_EQ(first, end);
    end = entry["data_offsets"][1].get<uint64_t>();
    EXPECT_TRUE(to->entries.emplace(name, entry).second) << name;
    to->bytes[name] = file.substr(8 + length + first, end - first);
  }
  EXPECT_EQ(8 + length + end, file.size());
}

std::string Converted(const std::vector<std::byte>& from, FloatType from_type, FloatType to) {
  std::string bytes;
  const auto size = static_cast<size_t>(SizeOf(from_type));
  for (size_t i = 0; i < from.size(); i += size) {
    uint32_t bits = 0;
    std::memcpy(&bits, from.data() + i, size);
    if (from_type != to) {
      float value = 0;
      if (from_type == FloatType::kF32) {
        std::memcpy(&value, &bits, sizeof(value));
      } else {
        value = ToFloat(static_cast<uint16_t>(bits), from_type);
      }
      if (to == FloatType::kF32) {
        std::memcpy(&bits, &value, sizeof(bits));
      } else {
        bits = FromFloat(value, to);
      }
    }
    bytes.append(reinterpret_cast<const char*>(&bits), static_cast<size_t>(SizeOf(to)));
  }
  return bytes;
}

class CkptTest : public testing::Test {
 protected:
  std::string Runs() const { return directory_.path() + "/runs"; }
  std::string Out() const { return directory_.path() + "/out"; }

  void Save(const SavedModel& model, const std::string& tag, uint64_t id,
            const std::map<std::string, std::string>& attached = {}) {
    for (uint32_t rank = 0; rank < model.pieces.size(); ++rank) {
      SavedPart part{.rank = rank,
                     .ranks = static_cast<uint32_t>(model.pieces.size()),
                     .tensors = model.tensors,
                     .pieces = model.pieces[rank]};
      auto writer = CheckpointWriter::Begin(RealFiles(), {Runs(), tag, id}, part, "");
      ASSERT_TRUE(writer.ok()) << writer.status();
      for (size_t i = 0; i < part.pieces.size(); ++i) {
        const SavedPiece& p = part.pieces[i];
        ASSERT_TRUE((*writer)->Write(i, model.Bytes(p.tensor, p.field, p.first, p.elements)).ok());
      }
      for (const auto& [name, text] : attached) {
        if (rank != 0) continue;
        ASSERT_TRUE((*writer)->Attach(name, std::as_bytes(std::span(text))).ok());
      }
      ASSERT_TRUE((*writer)->Finish().ok());
    }
    ASSERT_TRUE(CommitCheckpoint(RealFiles(), {Runs(), tag, id}, true).ok());
  }

  const TempDir directory_;
};

TEST_F(CkptTest, ListsShowsAndVerifies) {
  Rng rng(3);
  SavedModel model = RandomModel(&rng, 2);
  model.tensors = {{"w", 5000, 12, FloatType::kBf16, {"master", "exp_avg"}},
                   {"frozen", 9, 0, FloatType::kF16, {"param"}}};
  CutPieces(&rng, 2, {}, &model);
  Save(model, "first", 1, {{"client.json", "{}"}});
  Save(model, "second", 2);

  Result result = Sluice("ckpt list " + Runs());
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("  second  12 steps, "), HasSubstr("of 2 ranks, saved 2")));
  EXPECT_LT(result.out.find("\n  second"), result.out.find("\n  first"));
  Json json = Parsed(Sluice("ckpt list --json " + Runs()));
  ASSERT_EQ(json["checkpoints"].size(), 2u);
  EXPECT_EQ(json["checkpoints"][1]["tag"], "first");
  EXPECT_EQ(json["checkpoints"][1]["id"], "0000000000000001");
  EXPECT_EQ(json["checkpoints"][1]["steps"], 12);
  EXPECT_EQ(json["checkpoints"][1]["ranks"], 2);
  EXPECT_TRUE(json["checkpoints"][1]["problem"].is_null());

  result = Sluice(fmt::format("ckpt show {} first", Runs()));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out,
              AllOf(HasSubstr("bf16 "), HasSubstr("1 tensor, 5000 elements"),
                    HasSubstr("fp16, frozen"), HasSubstr("client.json of rank 0, 2 B")));
  json = Parsed(Sluice(fmt::format("ckpt show {} --json", Runs())));
  EXPECT_EQ(json["tag"], "second");
  EXPECT_EQ(json["note"], "");
  EXPECT_EQ(json["tensors"][0]["fields"], Json({"master", "exp_avg"}));
  EXPECT_EQ(json["tensors"][0]["step"], 12);

  EXPECT_EQ(Sluice(fmt::format("ckpt verify {}", Runs())).code, 0);
  const std::string data = Runs() + "/second/rank-00001.safetensors";
  std::fstream(data, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(-1, std::ios::end)
      .put('?');
  result = Sluice(fmt::format("ckpt verify {}", Runs()));
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.out, AllOf(HasSubstr("first   whole"),
                                HasSubstr("second/rank-00001.safetensors is damaged")));
  EXPECT_EQ(Sluice(fmt::format("ckpt verify {} first", Runs())).code, 0);
  json = Parsed(Sluice(fmt::format("ckpt verify {} second --json", Runs())));
  EXPECT_THAT(json["checkpoints"][0]["problem"].get<std::string>(), HasSubstr("is damaged"));
  EXPECT_EQ(Sluice(fmt::format("ckpt list {}", Runs())).code, 0);

  std::filesystem::resize_file(data, 100);
  EXPECT_THAT(Sluice("ckpt list " + Runs()).out, HasSubstr("can't be loaded: "));
  result = Sluice("ckpt show " + Runs());
  EXPECT_EQ(result.code, 0);  // the other, and why
  EXPECT_THAT(result.out, AllOf(HasSubstr("runs/first"), HasSubstr("note")));
  result = Sluice(fmt::format("ckpt show {} second", Runs()));
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("'first' of 12 steps can be loaded instead"));
  for (const char* command : {"list", "show", "verify", "export -o /nowhere/x"}) {
    result = Sluice(fmt::format("ckpt {} {}/nowhere", command, Runs()));
    EXPECT_EQ(result.code, 1) << command;
    EXPECT_THAT(result.err, HasSubstr("nowhere"));
    EXPECT_THAT(result.out, IsEmpty());
  }
  for (const char* wrong :
       {"", "lisst x", "list", "list a b c", "show", "export .", "export . -o x --dtype fp8",
        "export . -o x --max-shard-size 0", "export . -o x --max-shard-size many"})
    EXPECT_EQ(Sluice(fmt::format("ckpt {}", wrong)).code, 2) << wrong;
}

TEST_F(CkptTest, ExportsWeightsOfAnyTypeInFilesOfAnySize) {
  const std::map<std::string, FloatType> types = {
      {"fp32", FloatType::kF32}, {"bf16", FloatType::kBf16}, {"fp16", FloatType::kF16}};
  const std::map<FloatType, std::string> names = {
      {FloatType::kF32, "F32"}, {FloatType::kBf16, "BF16"}, {FloatType::kF16, "F16"}};
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    Rng rng(seed);
    const SavedModel model = RandomModel(&rng, Draw(&rng, 1, 3));
    Save(model, fmt::format("s{}", seed), seed);
    for (const std::string dtype : {"", "fp32", "bf16", "fp16"}) {
      SCOPED_TRACE(fmt::format("{} as {}", seed, dtype));
      std::filesystem::remove_all(Out());
      const Result result =
          Sluice(fmt::format("ckpt export {} s{} -o {} --json --max-shard-size 20KB {}", Runs(),
                             seed, Out(), dtype.empty() ? "" : "--dtype " + dtype));
      ASSERT_EQ(result.code, 0) << result.err;
      const Json json = Parsed(result);
      Weights weights;
      for (const auto& file : std::filesystem::directory_iterator(Out()))
        if (file.path().extension() == ".safetensors") AddFile(file.path(), &weights);
      size_t count = 0;
      for (uint32_t t = 0; t < model.tensors.size(); ++t) {
        const SavedTensor& tensor = model.tensors[t];
        if (tensor.fields.empty()) continue;
        ++count;
        const std::vector<std::byte> values = model.Bytes(t, 0, 0, tensor.elements);
        ASSERT_TRUE(weights.entries.contains(tensor.name)) << tensor.name;
        const Json& entry = weights.entries[tensor.name];
        EXPECT_EQ(entry["shape"], Json({tensor.elements}));
        if (tensor.type.is_bytes()) {
          EXPECT_EQ(entry["dtype"], "U8");
          EXPECT_TRUE(
              std::ranges::equal(std::as_bytes(std::span(weights.bytes[tensor.name])), values));
          continue;
        }
        const FloatType to = dtype.empty() ? tensor.type.floats() : types.at(dtype);
        const FloatType from = model.IsFrozen(t) ? tensor.type.floats() : FloatType::kF32;
        EXPECT_EQ(entry["dtype"], names.at(to));
        EXPECT_EQ(weights.bytes[tensor.name], Converted(values, from, to)) << tensor.name;
      }
      EXPECT_EQ(weights.entries.size(), count);
      EXPECT_EQ(json["tensors"], count);
      EXPECT_EQ(json["left_out"].size(), model.tensors.size() - count);
      EXPECT_EQ(json["has_shapes"], false);
      if (json["files"].size() == 1) {
        EXPECT_EQ(json["files"][0], "model.safetensors");
        continue;
      }
      const Json index = Json::parse(ReadFile(Out() + "/model.safetensors.index.json"));
      EXPECT_EQ(index["weight_map"].size(), count);
      uint64_t total = 0;
      for (const auto& [name, bytes] : weights.bytes) total += bytes.size();
      EXPECT_EQ(index["metadata"]["total_size"], total);
      for (const auto& [name, file] : index["weight_map"].items()) {
        Weights one;
        AddFile(Out() + "/" + file.get<std::string>(), &one);
        EXPECT_TRUE(one.entries.contains(name)) << name;
      }
    }
  }
}

TEST_F(CkptTest, ExportsShapesAndBuffersThatPythonHasSaved) {
  Rng rng(9);
  SavedModel model = RandomModel(&rng, 1);
  model.tensors = {{"a", 12, 1, FloatType::kBf16, {"master"}},
                   {"ids", 24, 0, ElementType::Bytes(), {"param"}}};
  CutPieces(&rng, 1, {}, &model);
  const std::string head =
      R"({"__metadata__":{"format":"sluice.plain","value":"{}"},"0":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"1":{"dtype":"I64","shape":[],"data_offsets":[8,16]}})";
  std::string run(8, '\0');
  run[0] = static_cast<char>(head.size());
  run += head + "12345678abcdefgh";
  const std::string good = R"({"format":"sluice model","version":1,"tensors":{
      "a":{"shape":[3,4],"dtype":"bfloat16","aliases":["b"],"frozen":false},
      "ids":{"shape":[3,1],"dtype":"int64","aliases":[],"frozen":true},
      "none":{"shape":[0,7],"dtype":"float32","aliases":[],"frozen":false}},
      "buffers":{"mean":{"shape":[2],"dtype":"float32","aliases":[],"at":0},
                 "count":{"shape":[],"dtype":"int64","aliases":[],"at":1},
                 "freqs":{"shape":[1],"dtype":"complex64","aliases":[],"at":1}}})";
  Save(model, "good", 1, {{"model.json", good}, {"run.safetensors", run}});
  const auto to_out = [this](const std::string& tag) {
    return Sluice(fmt::format("ckpt export {} {} -o {}", Runs(), tag, Out()));
  };
  Result result = to_out("good");
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("model.safetensors"), HasSubstr("freqs first")));
  Weights weights;
  AddFile(Out() + "/model.safetensors", &weights);
  ASSERT_EQ(weights.entries.size(), 5u);
  const auto is = [&](const char* name, const char* dtype, const Json& shape) {
    EXPECT_EQ(weights.entries[name]["dtype"], dtype) << name;
    EXPECT_EQ(weights.entries[name]["shape"], shape) << name;
  };
  is("a", "BF16", {3, 4});
  is("ids", "I64", {3, 1});
  is("none", "F32", {0, 7});
  is("mean", "F32", {2});
  is("count", "I64", Json::array());
  EXPECT_EQ(weights.bytes["mean"], "12345678");
  EXPECT_EQ(weights.bytes["count"], "abcdefgh");

  // A second time: nothing is overwritten, and nothing is left.
  result = to_out("good");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("model.safetensors is there"));
  std::filesystem::remove_all(Out());
  uint64_t id = 1;
  for (const auto& [from, to, says] :
       std::vector<std::tuple<std::string, std::string, std::string>>{
           {"[3,4]", "[3,5]", "12 elements of it were saved"},
           {"[3,4]", "[281474976710656,2,0.5]", "no sizes"},
           {"[3,4]", "[281474976710656,281474976710656]", "too large"},
           {"[3,4]", "[-3,4]", "no sizes"},
           {"[3,1]", "[3,8]", "24 bytes of it were saved"},
           {"\"tensors\"", "\"tensor\"", "has no tensors"},
           {"\"at\":1", "\"at\":2", "not in run.safetensors"},
           {"\"at\":0", "\"at\":1", "not in run.safetensors"},
           {"\"at\":0", "\"at\":-1", "where it is"},
           {"[2],\"dtype\":\"float32\"", "[2],\"dtype\":\"int32\"", "not in run.safetensors"},
           {"\"mean\"", "\"a\"", "a buffer and a tensor"},
           {"{", "[", "JSON"}}) {
    std::string model_json = good;
    model_json.replace(model_json.find(from), from.size(), to);
    const std::string tag = fmt::format("bad{}", ++id);
    Save(model, tag, id, {{"model.json", model_json}, {"run.safetensors", run}});
    result = to_out(tag);
    EXPECT_EQ(result.code, 1) << to;
    EXPECT_THAT(result.err, HasSubstr(says));
    EXPECT_FALSE(std::filesystem::exists(Out() + "/model.safetensors"));
  }
}

// Damage that is met on the way ends it, and takes with it what was written.
TEST_F(CkptTest, ExportsNothingOfADamagedOne) {
  Rng rng(4);
  SavedModel model = RandomModel(&rng, 1);
  model.tensors = {{"a", 5000, 1, FloatType::kF32, {"master"}},
                   {"b", 5000, 1, FloatType::kF32, {"master"}}};
  CutPieces(&rng, 1, {}, &model);
  Save(model, "s", 1);
  std::fstream(Runs() + "/s/rank-00000.safetensors",
               std::ios::in | std::ios::out | std::ios::binary)
      .seekp(-5, std::ios::end)
      .put('?')
      .put('!');
  const Result result =
      Sluice(fmt::format("ckpt export {} -o {} --max-shard-size 10KB", Runs(), Out()));
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("is damaged"));
  EXPECT_TRUE(std::filesystem::is_empty(Out()));
}

}  // namespace
}  // namespace sluice

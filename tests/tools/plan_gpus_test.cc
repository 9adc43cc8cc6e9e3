// `sluice plan --gpus`, and models from safetensors files.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "fmt/format.h"
#include "nlohmann/json.hpp"
#include "tests/nvme/temp_dir.h"
#include "tests/tools/run_sluice.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using Json = nlohmann::json;

// With no GPU looked for, whatever this machine has.
Json GpusPlan(const std::string& arguments, int code = 0, const char* device = "host") {
  const Result result = Sluice(fmt::format("plan --device {} --json {}", device, arguments));
  EXPECT_EQ(result.code, code) << result.err;
  return Parsed(result);
}

Json WayOf(const Json& plan, int stage, const char* optimizer = "none",
           const char* param = "none") {
  for (const Json& way : plan.at("ways")) {
    if (way.at("stage") == stage && way.at("offload_optimizer") == optimizer &&
        way.at("offload_param") == param)
      return way;
  }
  ADD_FAILURE() << stage << optimizer << param;
  return {};
}

TEST(PlanGpusTest, BytesAreExactHoweverTheCountIsWritten) {
  for (const char* count : {"7e9", "7E9", "7e+9", "7B", "7b", "7.0B", "7000M", "7000000000",
                            "7_000_000_000", "0.007T", "70e8", "7.0e9", ".7e10"}) {
    SCOPED_TRACE(count);
    const Json plan = GpusPlan(fmt::format("--params {} --gpus 4", count));
    EXPECT_EQ(plan.at("parameters"), 7'000'000'000);
    const int64_t kept[] = {112'000'000'000, 49'000'000'000, 38'500'000'000, 28'000'000'000};
    for (int stage = 0; stage < 4; ++stage)
      EXPECT_EQ(WayOf(plan, stage).at("gpu_kept_bytes"), kept[stage]);
  }
  EXPECT_EQ(GpusPlan("--params 1.5b --gpus 2").at("parameters"), 1'500'000'000);
  EXPECT_EQ(GpusPlan("--params 175B --gpus 2").at("parameters"), 175'000'000'000);
  EXPECT_EQ(GpusPlan("--params 10T --gpus 1024").at("parameters"), 10'000'000'000'000);
}

// Of a unit of 218.75 million in bf16: three times its gradients, and twice what three others have
// of a rank's quarter. In HBM of a GPU; with --device host, in RAM of each of the four ranks.
TEST(PlanGpusTest, TheExchangesRoomIsBesideTheKnownFigures) {
  constexpr int64_t kExchange = 1'312'500'000 + 656'250'000, kServed = 2 * 218'750'000 / 4;
  const std::string arguments = "--params 7e9 --gpus 4 --hbm 40GiB ";
  const Json host = GpusPlan(arguments), gpu = GpusPlan(arguments, 0, "cuda");
  for (const Json& on_host : host.at("ways")) {
    const auto optimizer = on_host.at("offload_optimizer").get<std::string>();
    const auto param = on_host.at("offload_param").get<std::string>();
    const Json way = WayOf(gpu, on_host.at("stage"), optimizer.c_str(), param.c_str());
    const bool served = way.at("offload_param") != "none";
    const bool served_on_host = way.at("offload_param") == "nvme";
    EXPECT_EQ(way.at("exchange_bytes"), kExchange + (served ? kServed : 0));
    EXPECT_EQ(way.at("gpu_exchange_bytes"), way.at("exchange_bytes"));
    EXPECT_EQ(on_host.at("exchange_bytes"), kExchange + (served_on_host ? kServed : 0));
    EXPECT_EQ(on_host.at("gpu_exchange_bytes"), 0);
    for (const Json& w : {way, on_host}) {
      EXPECT_EQ(w.at("gpu_bytes"), w.at("gpu_kept_bytes").get<int64_t>() +
                                       w.at("gpu_moving_bytes").get<int64_t>() +
                                       w.at("gpu_exchange_bytes").get<int64_t>());
    }
    for (const char* ram : {"ram_bytes", "ram_least_bytes"}) {
      EXPECT_EQ(on_host.at(ram).get<int64_t>(),
                way.at(ram).get<int64_t>() + 4 * on_host.at("exchange_bytes").get<int64_t>());
    }
  }
  EXPECT_EQ(WayOf(gpu, 0).at("formulas").at("exchange"), "6L + 4L*(N-1)/N");
  EXPECT_EQ(WayOf(gpu, 3, "cpu", "cpu").at("formulas").at("exchange"), "6L + 4L*(N-1)/N + 2L/N");
  EXPECT_EQ(WayOf(GpusPlan("--params 7e9 --gpus 1"), 0).at("exchange_bytes"), 0);
}

TEST(PlanGpusTest, ThePageSaysEveryWayWithItsFormulasWithin100Columns) {
  for (const char* more : {"", "--hbm 24GiB", "--hbm 24GiB --ram 9GiB --nvme 1TiB --nvme-path a b",
                           "--hbm 200GiB --gpus-per-host 3 --dtype fp32"}) {
    const Result result = Sluice(fmt::format("plan --params 7e9 --gpus 4 --device host {}", more));
    EXPECT_EQ(result.code, 0) << result.err;
    for (const char* words :
         {"\nNeeded, in powers of 1000\n", "\nFormulas, of bytes\n", "\nRecommended\n",
          "P = 7000000000", "N = 4", "  0      none       none         1", "moving exchange ",
          "3      nvme       nvme "})
      EXPECT_THAT(result.out, HasSubstr(words));
    std::stringstream stream(result.out);
    for (std::string line; std::getline(stream, line);) {
      EXPECT_LE(line.size(), 100u) << line;
      EXPECT_FALSE(line.ends_with(' ')) << line;
    }
  }
}

TEST(PlanGpusTest, TypesChangeTheBytesOfAParameter) {
  const struct {
    const char* types;
    double param, grad, states;
  } cases[] = {{"", 2, 2, 12},
               {"--dtype fp16", 2, 2, 12},
               {"--dtype bf16 --grad-dtype fp32", 2, 4, 12},
               {"--dtype fp32", 4, 4, 12}};
  for (const auto& c : cases) {
    const Json plan = GpusPlan(fmt::format("--params 1B --gpus 1 {}", c.types));
    EXPECT_EQ(plan.at("bytes_per_parameter").at("param"), c.param);
    EXPECT_EQ(plan.at("bytes_per_parameter").at("grad"), c.grad);
    EXPECT_EQ(plan.at("bytes_per_parameter").at("states"), c.states);
    EXPECT_EQ(WayOf(plan, 0).at("gpu_bytes"), (c.param + c.grad + c.states) * 1e9);
  }
}

TEST(PlanGpusTest, WithoutAGpuOnlyWhatIsGivenIsJudged) {
  const Json none = GpusPlan("--params 7B --gpus 4");
  for (const char* tier : {"hbm_bytes", "ram_bytes", "nvme_bytes"})
    EXPECT_TRUE(none.at("machine").at(tier).is_null()) << tier;
  for (const Json& way : none.at("ways")) EXPECT_EQ(way.at("fits"), "unknown");
  EXPECT_TRUE(none.at("recommended").is_null());
  EXPECT_THAT(none.at("reason").get<std::string>(), HasSubstr("give --hbm, --ram, --nvme"));

  const Json hbm = GpusPlan("--params 7B --gpus 4 --hbm 45GB");
  EXPECT_EQ(WayOf(hbm, 0).at("fits"), "no");
  EXPECT_EQ(WayOf(hbm, 0).at("short_of"), "hbm");
  EXPECT_EQ(WayOf(hbm, 2).at("fits"), "tight");
  EXPECT_EQ(WayOf(hbm, 3).at("fits"), "yes");
  EXPECT_EQ(WayOf(hbm, 2, "cpu").at("fits"), "unknown");
  EXPECT_EQ(WayOf(hbm, 2, "cpu").at("short_of"), "ram");
  EXPECT_EQ(hbm.at("recommended").at("stage"), 3);
  EXPECT_EQ(hbm.at("recommended").at("gpu_free_bytes"),
            45'000'000'000 - WayOf(hbm, 3).at("gpu_bytes").get<int64_t>());
  EXPECT_EQ(GpusPlan("--params 7B --gpus 4 --hbm 45GB --headroom 10").at("recommended").at("stage"),
            2);
}

TEST(PlanGpusTest, RecommendsAConfigurationAndSaysWhy) {
  const std::string plan = "plan --params 7B --gpus 4 --device host ";
  const Result cpu = Sluice(plan + "--hbm 24GiB --ram 256GiB");
  EXPECT_THAT(
      cpu.out,
      AllOf(
          HasSubstr("take    stage 2, optimizer on cpu"),
          HasSubstr("without any, a GPU needs at least"),
          HasSubstr(R"("zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}})"),
          HasSubstr("(42%) to activations")));
  EXPECT_THAT(Sluice(plan + "--hbm 150GB").out, HasSubstr("all of it fits on every GPU"));
  const Json spills = GpusPlan("--params 7B --gpus 4 --hbm 24GiB --ram 9GiB --nvme 1TiB");
  EXPECT_EQ(spills.at("recommended").at("offload_optimizer"), "nvme");
  EXPECT_EQ(WayOf(spills, 2, "nvme").at("gradients_on_nvme"), true);
  EXPECT_EQ(WayOf(spills, 2, "nvme").at("nvme_most_bytes"), 14 * 7'000'000'000);
}

TEST(PlanGpusTest, WhatFitsNothingIsExitCode1AndSaysWhatIsShort) {
  const std::pair<const char*, const char*> cases[] = {
      {"--hbm 1GiB --ram 1TiB --nvme 1TiB", "a GPU must hold 1.75 GB at least"},
      {"--hbm 1GiB --ram 1TiB --nvme 1TiB", "--layers"},
      {"--hbm 24GiB --ram 1MiB --nvme 1TiB", "RAM of a host must hold"},
      {"--hbm 24GiB --ram 9GiB --nvme 1GiB", "NVMe of a host must hold 98.0 GB at least"}};
  for (const auto& [machine, words] : cases) {
    const std::string plan = fmt::format("plan --params 7B --gpus 4 --device host {}", machine);
    const Result text = Sluice(plan);
    EXPECT_EQ(text.code, 1);
    EXPECT_THAT(text.err, HasSubstr(words));
    EXPECT_THAT(text.out, HasSubstr("\nRecommended\n  none  nothing fits"));
    const Json json = Parsed(Sluice(plan + " --json"));
    EXPECT_TRUE(json.at("recommended").is_null());
    EXPECT_THAT(json.at("reason").get<std::string>(), HasSubstr(words));
  }
}

TEST(PlanGpusTest, HostsAndDrivesShareWhatIsTheirs) {
  const Json one = GpusPlan("--params 8B --gpus 16 --gpus-per-host 16");
  const Json two = GpusPlan("--params 8B --gpus 16 --nvme-path a --nvme-path b");
  EXPECT_EQ(two.at("hosts"), 2);
  EXPECT_EQ(two.at("gpus_per_host"), 8);
  EXPECT_EQ(two.at("drives_per_host"), 2);
  EXPECT_EQ(WayOf(one, 1, "nvme").at("nvme_bytes"), 96'000'000'000);
  EXPECT_EQ(WayOf(two, 1, "nvme").at("nvme_bytes"), 48'000'000'000);
  EXPECT_EQ(WayOf(two, 1, "nvme").at("drive_bytes"), 24'000'000'000);
  // Parameters in RAM are there once a host.
  const auto in_ram = [](const Json& plan) {
    return WayOf(plan, 3, "none", "cpu").at("ram_bytes").get<int64_t>() -
           WayOf(plan, 3).at("ram_bytes").get<int64_t>();
  };
  EXPECT_EQ(in_ram(one), 16'000'000'000);
  EXPECT_EQ(in_ram(two), 16'000'000'000);
}

// All bytes are whole numbers of their own type.
TEST(PlanGpusTest, NothingOfAHugeModelOverflows) {
  const Json plan = GpusPlan(
      "--params 10T --layers 500 --gpus 1024 --gpus-per-host 1024 --hbm 1GiB --nvme 1TiB", 1);
  EXPECT_EQ(plan.at("ways").size(), 18u);
  for (const Json& way : plan.at("ways")) {
    for (const auto& [key, value] : way.items()) {
      if (!key.ends_with("_bytes")) continue;
      EXPECT_TRUE(value.is_number_integer()) << key;
      EXPECT_GE(value.get<int64_t>(), 0) << key;
    }
  }
  EXPECT_EQ(WayOf(plan, 0, "nvme").at("nvme_bytes"), 12 * 10'000'000'000'000 * 1024);
}

TEST(PlanGpusTest, WhatIsNotUnderstoodIsExitCode2AndNamesIt) {
  const std::pair<const char*, const char*> cases[] = {
      {"--params 7B --gpus 0", "--gpus: '0' is not a whole number of GPUs from 1 to 65536"},
      {"--params 7B --gpus -4", "'-4' is not a whole number of GPUs"},
      {"--params 7B --gpus 2.5", "'2.5' is not a whole number of GPUs"},
      {"--params 7B --gpus four", "'four' is not a whole number of GPUs"},
      {"--params 7B --gpus 65537", "'65537' is not a whole number of GPUs"},
      {"--params 7B --gpus 99999999999999999999", "is not a whole number of GPUs"},
      {"--params 7B --gpus", "--gpus"},
      {"--params 7B --gpus 4 --gpus-per-host 0", "--gpus-per-host: '0' is not"},
      {"--params 7B --gpus 4 --gpus-per-host 1025", "from 1 to 1024"},
      {"--params 7B --gpus 4 --gpus-per-host 8",
       "--gpus-per-host 8 is more than all GPUs, which are 4"},
      {"--params 7B --gpus-per-host 2", "--gpus-per-host requires --gpus"},
      {"--params 7B --gpus 4 --headroom 100", "'100' is not a whole number of percent"},
      {"--params 7B --gpus 4 --headroom -1", "'-1' is not a whole number of percent"},
      {"--params 7B --gpus 4 --hbm lots", "'lots' is not a size"},
      {"--params 7B --gpus 4 --chunk-elements 5000", "multiple of 4096"},
      {"--params seven --gpus 4", "'seven' is not a count"},
      {"--params 7.5 --gpus 4", "'7.5' is not a count, which is whole"},
      {"--params 1.23456789012B --gpus 4", "which is whole"},
      {"--params 7e-1 --gpus 4", "'7e-1' is not a count"},
      {"--params 1e400 --gpus 4", "'1e400' is not a count"},
      {"--params 7e9B --gpus 4", "'7e9B' is not a count"},
      {"--params 7__0 --gpus 4", "'7__0' is not a count"},
      {"--params nan --gpus 4", "'nan' is not a count"},
      {"--params 7B --model config.json --gpus 4", "--model excludes --params"},
      {"--gpus 4", "give --params"}};
  for (const auto& [arguments, words] : cases) {
    SCOPED_TRACE(arguments);
    const Result result = Sluice(fmt::format("plan {}", arguments));
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, HasSubstr(words));
    EXPECT_THAT(result.out, IsEmpty());
  }
}

// The list of tools/plan_gpus.h, from where docs/api.md has it.
TEST(PlanGpusTest, KeysAreThoseThatAreListed) {
  std::set<std::string> listed, there;
  std::ifstream header(SLUICE_SOURCE_DIR "/tools/plan_gpus.h");
  const std::regex key("//   (\\S+)( .*)?");
  std::smatch match;
  for (std::string line; std::getline(header, line);) {
    if (std::regex_match(line, match, key)) listed.insert(match[1]);
  }
  const TempDir directory;
  const std::string config = directory.path() + "/config.json";
  std::ofstream(config) << R"({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
      "n_positions": 1024, "vocab_size": 50257})";
  const Json plan = GpusPlan("--gpus 2 --hbm 80GiB --model " + config);
  EXPECT_EQ(plan.at("parameters"), 124'439'808);
  for (const auto& [name, value] : plan.items()) {
    there.insert(name);
    const Json& inner = value.is_array() ? value.front() : value;
    if (!inner.is_object()) continue;
    if (name == "bytes_per_parameter" || name == "machine") there.erase(name);
    for (const auto& [key_inside, unused] : inner.items()) there.insert(name + "." + key_inside);
  }
  EXPECT_EQ(there, listed);
}

class SafetensorsTest : public testing::Test {
 protected:
  std::string File(const std::string& name, const std::string& text) const {
    const std::string path = directory_.path() + "/" + name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  // As the format has it: eight bytes of length, the header, and values, which nobody reads here.
  static std::string Bytes(const std::string& header) {
    std::string bytes;
    for (size_t length = header.size(), i = 0; i < 8; ++i, length >>= 8)
      bytes += static_cast<char>(length & 0xff);
    return bytes + header + "values";
  }
  static Json Tensor(const char* type, const std::vector<int64_t>& shape) {
    return {{"dtype", type}, {"shape", shape}, {"data_offsets", {0, 1}}};
  }

  const TempDir directory_;
};

TEST_F(SafetensorsTest, AHeaderIsCountedAndItsLayersAreUnits) {
  Json header = {{"__metadata__", {{"format", "pt"}}},
                 {"model.embed_tokens.weight", Tensor("F16", {1000, 64})},
                 {"model.position_ids", Tensor("I64", {1, 512})},
                 {"model.scale", Tensor("F16", {})},
                 {"model.empty", Tensor("F16", {0, 7})},
                 {"lm_head.weight", Tensor("F32", {10, 64})}};
  for (const int layer : {0, 1, 10}) {
    for (const char* part : {"mlp.experts.0.up", "mlp.experts.1.up", "norm"})
      header[fmt::format("model.layers.{}.{}.weight", layer, part)] = Tensor("F16", {64, 8});
  }
  const std::string path = File("model.safetensors", Bytes(header.dump()));
  constexpr int64_t kLayer = 3 * 64 * 8;
  const Json plan = Parsed(Sluice("plan --json --hbm 1GiB --pinned 1GiB --model " + path));
  EXPECT_EQ(plan.at("parameters"), 64000 + 1 + 640 + 3 * kLayer);
  EXPECT_EQ(plan.at("units"), 3 + 3);  // the embedding, what the model itself has, the head
  EXPECT_EQ(plan.at("param_dtype"), "fp16");
  EXPECT_THAT(plan.at("model").get<std::string>(),
              HasSubstr("without 512 values that are no floats"));
  const Json gpus = GpusPlan("--gpus 2 --model " + path);
  EXPECT_EQ(gpus.at("parameters"), plan.at("parameters"));
  EXPECT_EQ(gpus.at("two_units_parameters"), 64000 + kLayer);
  EXPECT_EQ(gpus.at("largest_unit_parameters"), 64000);
}

TEST_F(SafetensorsTest, AnIndexIsTheSumOfItsFiles) {
  File("a.safetensors", Bytes(Json{{"h.0.w", Tensor("BF16", {30, 7})}}.dump()));
  File("b.safetensors", Bytes(Json{{"h.1.w", Tensor("BF16", {50})}}.dump()));
  const auto index = [this](const Json& names) {
    return "plan --device host --json --gpus 1 --model " +
           File("model.safetensors.index.json", Json{{"weight_map", names}}.dump());
  };
  const Result good = Sluice(index({{"h.0.w", "a.safetensors"}, {"h.1.w", "b.safetensors"}}));
  EXPECT_EQ(Parsed(good).at("parameters"), 260);
  const std::pair<Json, const char*> cases[] = {
      {{{"h.0.w", "../a.safetensors"}}, "is no file of its directory"},
      {{{"h.0.w", "/etc/passwd"}}, "is no file of its directory"},
      {{{"h.0.w", "c.safetensors"}}, "c.safetensors"},
      {{{"h.2.w", "a.safetensors"}}, "h.2.w is not in a.safetensors"},
      {{{"h.0.w", 5}}, "must be a file's name"},
      {Json::array(), "must be an object"},
      {Json::object(), "holds no parameters"}};
  for (const auto& [names, words] : cases) {
    const Result result = Sluice(index(names));
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, HasSubstr(words));
  }
}

TEST_F(SafetensorsTest, AFileThatWillNotDoIsRefusedByName) {
  const auto with = [](const Json& tensor) { return Bytes(Json{{"w", tensor}}.dump()); };
  const std::pair<std::string, const char*> cases[] = {
      {"", "is not a safetensors file"},
      {"version https://git-lfs.github.com/spec/v1", "is not a safetensors file"},
      {std::string(8, '\0'), "is not a safetensors file"},
      {Bytes("{}").substr(0, 7), "is not a safetensors file"},
      {Bytes(std::string(100, ' ')).substr(0, 50), "its header is cut off"},
      {Bytes("{]"), "is not JSON"},
      {Bytes("[]"), "must hold an object"},
      {Bytes("{}"), "holds no parameters"},
      {Bytes("{\"a\": " + std::string(500, '[') + "}"), "nested too deeply"},
      {with(5), "w: has no dtype and shape"},
      {with({{"dtype", "BF16"}}), "w: has no dtype and shape"},
      {with({{"dtype", 5}, {"shape", {1}}}), "w: has no dtype and shape"},
      {with(Tensor("BF16", {-1})), "w: its shape is no sizes"},
      {with({{"dtype", "BF16"}, {"shape", {1.5}}}), "w: its shape is no sizes"},
      {with(Tensor("BF16", {int64_t{1} << 32, int64_t{1} << 32})), "at most 16T parameters"},
      {with(Tensor("I64", {4})), "holds no parameters"}};
  for (const auto& [bytes, words] : cases) {
    SCOPED_TRACE(words);
    const Result result = Sluice("plan --gpus 2 --model " + File("x.safetensors", bytes));
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, AllOf(HasSubstr("/x.safetensors"), HasSubstr(words)));
    EXPECT_THAT(result.out, IsEmpty());
  }
}

}  // namespace
}  // namespace sluice

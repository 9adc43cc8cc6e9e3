// `sluice plan` with a model and a configuration from files. The oracle for shapes is how many
// parameters the published models have.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>

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

class PlanFilesTest : public testing::Test {
 protected:
  std::string File(const char* name, const std::string& text) {
    const std::string path = directory_.path() + "/" + name;
    std::ofstream(path) << text;
    return path;
  }
  Result PlanOf(const std::string& model, const std::string& more = "") {
    return Sluice(
        fmt::format("plan --model {} --json --hbm 1TiB --pinned 20TiB --chunk-elements 16777216 {}",
                    File("config.json", model), more));
  }
  Json PlanWith(const std::string& config, const std::string& more = "") {
    const Result result = Sluice(fmt::format("plan --params 20M --json --config {} {}",
                                             File("ds_config.json", config), more));
    EXPECT_EQ(result.code, 0) << result.err;
    return Parsed(result);
  }

  const TempDir directory_;
};

std::string Llama(const char* type, int hidden, int inner, int layers, int heads, int kv_heads,
                  int vocab, const std::string& more) {
  return fmt::format(
      R"({{"architectures": ["AnyForCausalLM"], "model_type": "{}", "hidden_size": {},
      "intermediate_size": {}, "num_hidden_layers": {}, "num_attention_heads": {},
      "num_key_value_heads": {}, "vocab_size": {}, {}}})",
      type, hidden, inner, layers, heads, kv_heads, vocab, more);
}

std::string Bert(const char* type, const char* architecture, int vocab, int positions, int types) {
  return fmt::format(
      R"({{"architectures": ["{}"], "model_type": "{}", "hidden_size": 768, "intermediate_size": 3072,
      "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": {},
      "max_position_embeddings": {}, "type_vocab_size": {}}})",
      architecture, type, vocab, positions, types);
}

std::string T5(const char* type, const char* architecture, int hidden, int inner, int layers,
               int heads, int vocab, const std::string& more) {
  return fmt::format(
      R"({{"architectures": ["{}"], "model_type": "{}", "d_model": {}, "d_ff": {}, "num_layers": {},
      "num_heads": {}, "d_kv": 64, "vocab_size": {}{}}})",
      architecture, type, hidden, inner, layers, heads, vocab, more);
}

std::string Opt(int hidden, int inner, int layers, int words, bool norm_before) {
  return fmt::format(
      R"({{"architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": {}, "ffn_dim": {},
      "num_hidden_layers": {}, "num_attention_heads": 12, "vocab_size": 50272,
      "max_position_embeddings": 2048, "word_embed_proj_dim": {}, "do_layer_norm_before": {}}})",
      hidden, inner, layers, words, norm_before);
}

TEST_F(PlanFilesTest, PublishedModelsHaveThePublishedNumbersOfParameters) {
  const std::string untied = R"("tie_word_embeddings": false)";
  const std::string tied = R"("tie_word_embeddings": true)";
  const std::string gated = R"(, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false)";
  const std::string neox =
      R"({"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 512,
      "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 8,
      "vocab_size": 50304, "tie_word_embeddings": false})";
  const std::string gpt2 =
      R"({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12,
      "n_head": 12, "n_positions": 1024, "vocab_size": 50257})";
  const struct {
    const char* name;
    int64_t parameters;
    std::string config;
  } models[] = {
      {"Llama 2 7B", 6'738'415'616, Llama("llama", 4096, 11008, 32, 32, 32, 32000, untied)},
      {"Llama 3 8B", 8'030'261'248, Llama("llama", 4096, 14336, 32, 32, 8, 128256, untied)},
      {"Llama 3 70B", 70'553'706'496, Llama("llama", 8192, 28672, 80, 64, 8, 128256, untied)},
      {"Mistral 7B", 7'241'732'096, Llama("mistral", 4096, 14336, 32, 32, 8, 32000, untied)},
      {"Mixtral 8x7B", 46'702'792'704,
       Llama("mixtral", 4096, 14336, 32, 32, 8, 32000, untied + R"(, "num_local_experts": 8)")},
      {"Qwen2 0.5B", 494'032'768, Llama("qwen2", 896, 4864, 24, 14, 2, 151936, tied)},
      {"Qwen2 7B", 7'615'616'512, Llama("qwen2", 3584, 18944, 28, 28, 4, 152064, untied)},
      {"Qwen3 0.6B", 596'049'920,
       Llama("qwen3", 1024, 3072, 28, 16, 8, 151936, tied + R"(, "head_dim": 128)")},
      {"Qwen3 30B-A3B", 30'532'122'624,
       Llama("qwen3_moe", 2048, 6144, 48, 32, 4, 151936,
             untied + R"(, "head_dim": 128, "num_experts": 128, "moe_intermediate_size": 768)")},
      {"Gemma 2B", 2'506'172'416,
       Llama("gemma", 2048, 16384, 18, 8, 1, 256000, tied + R"(, "head_dim": 256)")},
      {"Gemma 2 2B", 2'614'341'888,
       Llama("gemma2", 2304, 9216, 26, 8, 4, 256000, tied + R"(, "head_dim": 256)")},
      {"GPT-2", 124'439'808, gpt2},
      {"Pythia 70M", 70'426'624, neox},
      {"OPT 125M", 125'239'296, Opt(768, 3072, 12, 768, true)},
      {"OPT 350M", 331'196'416, Opt(1024, 4096, 24, 512, false)},
      {"BERT base", 109'482'240, Bert("bert", "BertModel", 30522, 512, 2)},
      {"BERT base, masked", 109'514'298, Bert("bert", "BertForMaskedLM", 30522, 512, 2)},
      {"RoBERTa base", 124'645'632, Bert("roberta", "RobertaModel", 50265, 514, 1)},
      {"RoBERTa base, masked", 124'697'433, Bert("roberta", "RobertaForMaskedLM", 50265, 514, 1)},
      {"T5 small", 60'506'624, T5("t5", "T5ForConditionalGeneration", 512, 2048, 6, 8, 32128, "")},
      {"T5 base", 222'903'552,
       T5("t5", "T5ForConditionalGeneration", 768, 3072, 12, 12, 32128, "")},
      {"Flan-T5 small", 76'961'152,
       T5("t5", "T5ForConditionalGeneration", 512, 1024, 8, 6, 32128, gated)},
      {"mT5 small", 300'176'768,
       T5("mt5", "MT5ForConditionalGeneration", 512, 1024, 8, 6, 250112, gated)}};
  for (const auto& model : models) {
    SCOPED_TRACE(model.name);
    const Result result = PlanOf(model.config);
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(Parsed(result).at("parameters").get<int64_t>(), model.parameters);
  }
}

TEST_F(PlanFilesTest, LayersAreUnits) {
  const Json plan =
      Parsed(PlanOf(Llama("llama", 64, 128, 5, 4, 4, 100, R"("tie_word_embeddings": false)")));
  EXPECT_EQ(plan.at("units"), 1 + 5 + 1 + 1);
  EXPECT_EQ(plan.at("model"), "llama, AnyForCausalLM");
}

TEST_F(PlanFilesTest, WhatIsNotCountedIsSaid) {
  const Result result =
      Sluice("plan --hbm 1GiB --pinned 8GiB --model " +
             File("config.json", Bert("bert", "BertForQuestionAnswering", 30522, 512, 2)));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out,
              HasSubstr("bert, BertForQuestionAnswering, whose own head is not counted"));
}

TEST_F(PlanFilesTest, TheTypeIsTheCommandLinesThenTheConfigurationsThenTheModels) {
  const std::string model = Llama("llama", 64, 128, 2, 4, 4, 100, R"("torch_dtype": "float16")");
  EXPECT_EQ(Parsed(PlanOf(model)).at("param_dtype"), "fp16");
  EXPECT_EQ(Parsed(PlanOf(model, "--dtype fp32")).at("param_dtype"), "fp32");
  const std::string config = File("ds_config.json", R"({"bf16": {"enabled": true}})");
  EXPECT_EQ(Parsed(PlanOf(model, "--config " + config)).at("param_dtype"), "bf16");
}

TEST_F(PlanFilesTest, AModelThatWillNotDoIsRefusedByFileAndKey) {
  const std::string good = Llama("llama", 64, 128, 2, 4, 4, 100, R"("x": 1)");
  const auto with = [&good](const char* key, const Json& value) {
    Json json = Json::parse(good);
    json[key] = value;
    if (value.is_null()) json.erase(key);
    return json.dump();
  };
  const auto product = [&good](int64_t heads, int64_t head) {
    Json json = Json::parse(good);
    json["num_attention_heads"] = json["num_key_value_heads"] = heads;
    json["head_dim"] = head;
    return json.dump();
  };
  const auto t5 = [](int64_t heads, int64_t head) {
    return Json{{"model_type", "t5"}, {"d_model", 8},    {"d_ff", 8},      {"num_heads", heads},
                {"d_kv", head},       {"vocab_size", 8}, {"num_layers", 1}}
        .dump();
  };
  const std::pair<std::string, const char*> cases[] = {
      {with("model_type", "mamba"), "model_type: 'mamba' is not known here; known are bert, gemma"},
      {with("model_type", "mamba"), "give --params, or --layers and --hidden"},
      {with("model_type", nullptr), "model_type: is missing"},
      {with("model_type", 5), "model_type: must be a string, not 5"},
      {with("hidden_size", nullptr), "hidden_size: is missing"},
      {with("hidden_size", "big"),
       "hidden_size: must be a whole number of at least 1, not \"big\""},
      {with("hidden_size", 0), "hidden_size: must be"},
      {with("hidden_size", -4), "hidden_size: must be"},
      {with("hidden_size", 1.5), "hidden_size: must be"},
      {with("hidden_size", 1e300), "hidden_size: must be"},
      {with("hidden_size", Json::array()), "hidden_size: must be"},
      {with("num_hidden_layers", 10'000'000), "num_hidden_layers: at most 100000"},
      {with("vocab_size", 1'000'000'000'000), "at most 16T parameters"},
      // Products of two that 64 bits would wrap, to 0, to more and to less.
      {product(int64_t{1} << 32, int64_t{1} << 32), "at most 16T parameters"},
      {product((int64_t{1} << 32) + 1, (int64_t{1} << 32) + 2), "at most 16T parameters"},
      {product(3037000500, 3037000500), "at most 16T parameters"},
      {t5(int64_t{1} << 32, int64_t{1} << 32), "at most 16T parameters"},
      {t5(3037000500, 3037000500), "at most 16T parameters"},
      {with("add_cross_attention", true), "add_cross_attention"},
      {with("tie_word_embeddings", "no"), "tie_word_embeddings: must be true or false"},
      {"", "is not JSON"},
      {"{", "is not JSON"},
      {"[]", "must hold an object, not []"},
      {std::string(5000, '['), "nested too deeply"},
      {"{\"a\": \"\xff\"}", "is not JSON"}};
  for (const auto& [text, words] : cases) {
    SCOPED_TRACE(text.substr(0, 200));
    const Result result = PlanOf(text);
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, AllOf(HasSubstr("/config.json"), HasSubstr(words)));
    EXPECT_THAT(result.out, IsEmpty());
  }
}

TEST_F(PlanFilesTest, WhatIsNoFileIsRefusedAtOnce) {
  const std::string fifo = directory_.path() + "/fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  for (const char* option : {"--model", "--params 1M --config"}) {
    for (const std::string& path :
         {fifo, directory_.path(), directory_.path() + "/none", std::string("/dev/zero")}) {
      const Result result = Sluice(fmt::format("plan {} {}", option, path));
      EXPECT_EQ(result.code, 2);
      EXPECT_THAT(result.err, HasSubstr(path));
    }
  }
}

TEST_F(PlanFilesTest, AConfigurationSaysTypesTiersAndBudgets) {
  const Json plan = PlanWith(R"({
    // as DeepSpeed's, with comments
    "fp16": {"enabled": true}, "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 3,
      "offload_param": {"device": "nvme", "nvme_path": "/no/such/place"},
      "offload_optimizer": {"device": "nvme", "nvme_path": "/no/such/place"}},
    "sluice": {"hbm": "16MiB", "pinned": 134217728, "nvme": "1GiB", "device": "host", "chunk_elements": 8192}})");
  EXPECT_EQ(plan.at("param_dtype"), "fp16");
  EXPECT_EQ(plan.at("grad_dtype"), "fp32");
  EXPECT_EQ(plan.at("budgets_bytes").at("hbm"), 16 << 20);
  EXPECT_EQ(plan.at("budgets_bytes").at("pinned"), 128 << 20);
  EXPECT_EQ(plan.at("budgets_bytes").at("nvme"), 1 << 30);
  EXPECT_EQ(plan.at("chunk_elements"), 8192);
  EXPECT_GT(plan.at("nvme").at("states_bytes"), 0);
}

TEST_F(PlanFilesTest, WhatIsGivenGoesBeforeTheConfiguration) {
  const Json plan =
      PlanWith(R"({"bf16": {"enabled": true}, "sluice": {"hbm": "1MiB", "pinned": "1MiB"}})",
               "--hbm 2GiB --pinned 3GiB --dtype fp32");
  EXPECT_EQ(plan.at("param_dtype"), "fp32");
  EXPECT_EQ(plan.at("budgets_bytes").at("hbm"), int64_t{2} << 30);
  EXPECT_EQ(plan.at("budgets_bytes").at("pinned"), int64_t{3} << 30);
}

// How far down things may go decides, as in initialize().
TEST_F(PlanFilesTest, TiersAreAsTheConfigurationSays) {
  const struct {
    const char* param;
    const char* optimizer;
    bool params_on_nvme;
  } cases[] = {{"cpu", "cpu", false},
               {"cpu", "nvme", false},
               {"nvme", "nvme", true},
               {"none", "nvme", false}};
  for (const auto& c : cases) {
    SCOPED_TRACE(fmt::format("{} {}", c.param, c.optimizer));
    const std::string config = fmt::format(
        R"({{"bf16": {{"enabled": true}}, "zero_optimization": {{"offload_param": {{"device": "{}"}},
        "offload_optimizer": {{"device": "{}"}}}}}})",
        c.param, c.optimizer);
    const bool all_in_hbm = std::string(c.param) == "none";
    const Json plan = PlanWith(
        config, fmt::format("--device host --pinned {} --hbm {}",
                            !c.params_on_nvme ? "400MiB" : "50MiB", all_in_hbm ? "1GiB" : "8MiB"));
    EXPECT_EQ(plan.at("nvme").at("params_bytes") > 0, c.params_on_nvme);
    EXPECT_EQ(plan.at("nvme").at("states_bytes") > 0, c.params_on_nvme);  // RAM holds all else
  }
}

TEST_F(PlanFilesTest, AConfigurationThatWillNotDoIsRefusedByFileAndKey) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"sluice": {"hbm": "lots"}})", "sluice: hbm: 'lots' is not a size"},
      {R"({"sluice": {"hbm": -1}})", "sluice: hbm: must be a whole number of at least 0, not -1"},
      {R"({"sluice": {"pinned": true}})", "sluice: pinned: must be a string"},
      {R"({"sluice": {"chunk_elements": 0.5}})", "sluice: chunk_elements: must be"},
      {R"({"sluice": []})", "sluice: must be an object"},
      {R"({"zero_optimization": {"offload_param": {"device": "gpu"}}})",
       "offload_param: device: must be one of"},
      {R"({"zero_optimization": {"offload_optimizer": "cpu"}})",
       "offload_optimizer: must be an object"},
      {R"({"bf16": {"enabled": "yes"}})", "bf16: enabled: must be true or false"},
      {R"({"data_types": {"grad_accum_dtype": "fp8"}})",
       "data_types: grad_accum_dtype: must be one of"},
      {"[]", "must hold an object"}};
  for (const auto& [text, words] : cases) {
    SCOPED_TRACE(text);
    const Result result = Sluice("plan --params 1M --config " + File("ds_config.json", text));
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, AllOf(HasSubstr("/ds_config.json"), HasSubstr(words)));
  }
}

TEST_F(PlanFilesTest, AutoIsAsIfItWereNotThere) {
  const Json plan = PlanWith(
      R"({"bf16": {"enabled": "auto"}, "zero_optimization": {"stage3_param_persistence_threshold": "auto",
      "offload_param": {"device": "auto"}}, "sluice": {"hbm": "auto", "device": "auto", "chunk_elements": "auto"}})",
      "--hbm 1GiB --pinned 1GiB");
  EXPECT_EQ(plan.at("param_dtype"), "fp32");
}

}  // namespace
}  // namespace sluice

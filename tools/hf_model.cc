#include "tools/hf_model.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "core/status.h"
#include "fmt/format.h"
#include "tools/spec_builder.h"

namespace sluice::tools {

namespace {

constexpr int64_t kLayersMax = 100'000;

// The product, or what SpecBuilder finds too large.
int64_t Times(int64_t a, int64_t b) {
  int64_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

// What is built, and from what.
struct Job {
  Fields f;
  SpecBuilder builder;
  std::string architecture;  // of the whole model; empty if the file doesn't say
  std::string not_counted;   // the head, if it is none that is known here

  bool Is(std::string_view ending) const { return architecture.ends_with(ending); }
  int64_t Layers(std::string_view key) {
    const int64_t layers = f.Whole(key, std::nullopt);
    if (layers > kLayersMax) f.Refuse(key, fmt::format("at most {} can be planned", kLayersMax));
    return f.status().ok() ? layers : 0;
  }
  int64_t HeadDim(int64_t hidden, int64_t heads, std::optional<int64_t> otherwise) {
    return f.Whole("head_dim", otherwise.value_or(hidden / heads));
  }

  // What a decoder ends in: the output matrix, unless it is the embedding's.
  void LmHead(int64_t hidden, int64_t vocab, bool tied, int64_t bias = 0) {
    if (Is("ForCausalLM") || Is("LMHeadModel") || Is("ForConditionalGeneration") ||
        architecture.empty()) {
      if (tied && bias == 0) return;
      builder.Unit("lm_head");
      if (!tied) builder.Tensor("weight", {vocab, hidden});
      builder.Tensor("bias", {vocab, bias});
    } else if (!Is("Model")) {
      not_counted = architecture;
    }
  }
};

// ---- Decoders like Llama: RMS norms, a gated MLP, keys and values of fewer heads

struct LlamaStyle {
  bool qkv_bias = false;              // always
  bool bias_by_config = false;        // attention_bias: of all four
  bool qk_norm = false;               // of each head
  int64_t norms = 2;                  // in a layer
  bool tied = false;                  // unless the file says otherwise
  int64_t head_dim = 0;               // likewise; 0: of the hidden size
  const char* expert_size = nullptr;  // the key of the experts' inner size; null: none
  bool shared_expert = false;
};

void AddExperts(const LlamaStyle& style, int64_t hidden, Job* job) {
  const char* key = job->f.Has("num_local_experts") ? "num_local_experts" : "num_experts";
  const int64_t experts = job->f.Whole(key, std::nullopt);
  const int64_t size = job->f.Whole(style.expert_size, std::nullopt);
  job->builder.Tensor("mlp.gate.weight", {experts, hidden});
  job->builder.Tensor("mlp.experts.gate_up", {experts, 2 * size, hidden});
  job->builder.Tensor("mlp.experts.down", {experts, hidden, size});
  if (!style.shared_expert) return;
  const int64_t shared = job->f.Whole("shared_expert_intermediate_size", std::nullopt);
  job->builder.Tensor("mlp.shared_expert.gate_up", {2 * shared, hidden});
  job->builder.Tensor("mlp.shared_expert.down", {hidden, shared});
  job->builder.Tensor("mlp.shared_expert_gate.weight", {1, hidden});
}

// Whether layer `index` has experts rather than one MLP.
bool IsSparse(const LlamaStyle& style, int64_t index, const Json& config, Job* job) {
  if (style.expert_size == nullptr) return false;
  for (const Json& layer : config.value("mlp_only_layers", Json::array())) {
    if (layer == index) return false;
  }
  return (index + 1) % job->f.Whole("decoder_sparse_step", 1) == 0;
}

void AddLlamaLike(const LlamaStyle& style, const Json& config, Job* job) {
  Fields& f = job->f;
  SpecBuilder& b = job->builder;
  const int64_t hidden = f.Whole("hidden_size", std::nullopt);
  const int64_t vocab = f.Whole("vocab_size", std::nullopt);
  const int64_t heads = f.Whole("num_attention_heads", std::nullopt);
  const int64_t kv_heads = f.Whole("num_key_value_heads", heads);
  const int64_t head = job->HeadDim(
      hidden, heads, style.head_dim > 0 ? std::optional(style.head_dim) : std::nullopt);
  const int64_t q_size = Times(heads, head);
  const int64_t kv_size = Times(kv_heads, head);
  const int64_t all_bias = style.bias_by_config && f.Flag("attention_bias", false) ? 1 : 0;
  const int64_t qkv_bias = style.qkv_bias ? 1 : all_bias;
  const int64_t mlp_bias = style.bias_by_config && f.Flag("mlp_bias", false) ? 1 : 0;
  const int64_t layers = job->Layers("num_hidden_layers");
  b.Unit("embed_tokens");
  b.Tensor("weight", {vocab, hidden});
  for (int64_t i = 0; i < layers; ++i) {
    b.Unit(fmt::format("layers.{}", i));
    b.Tensor("norms", {style.norms, hidden});
    b.Linear("q_proj", hidden, q_size, qkv_bias);
    b.Linear("k_proj", hidden, kv_size, qkv_bias);
    b.Linear("v_proj", hidden, kv_size, qkv_bias);
    b.Linear("o_proj", q_size, hidden, all_bias);
    if (style.qk_norm) b.Tensor("qk_norms", {2, head});
    if (IsSparse(style, i, config, job)) {
      AddExperts(style, hidden, job);
      continue;
    }
    const int64_t inner = f.Whole("intermediate_size", std::nullopt);
    b.Linear("mlp.gate_proj", hidden, inner, mlp_bias);
    b.Linear("mlp.up_proj", hidden, inner, mlp_bias);
    b.Linear("mlp.down_proj", inner, hidden, mlp_bias);
  }
  b.Unit("norm");
  b.Tensor("weight", {hidden});
  job->LmHead(hidden, vocab, f.Flag("tie_word_embeddings", style.tied));
}

// ---- Older decoders: norms and linear layers with biases

void AddGpt2(Job* job) {
  Fields& f = job->f;
  SpecBuilder& b = job->builder;
  const int64_t hidden = f.Whole("n_embd", std::nullopt);
  const int64_t inner = f.Whole("n_inner", 4 * hidden);
  const int64_t vocab = f.Whole("vocab_size", std::nullopt);
  const int64_t layers = job->Layers("n_layer");
  b.Unit("embeddings");
  b.Tensor("wte.weight", {vocab, hidden});
  b.Tensor("wpe.weight", {f.Whole("n_positions", std::nullopt), hidden});
  for (int64_t i = 0; i < layers; ++i) {
    b.Unit(fmt::format("h.{}", i));
    b.Tensor("norms", {4, hidden});
    b.Linear("attn.c_attn", hidden, 3 * hidden);
    b.Linear("attn.c_proj", hidden, hidden);
    b.Linear("mlp.c_fc", hidden, inner);
    b.Linear("mlp.c_proj", inner, hidden);
  }
  b.Unit("ln_f");
  b.Tensor("weight", {2, hidden});
  job->LmHead(hidden, vocab, f.Flag("tie_word_embeddings", true));
}

void AddGptNeoX(Job* job) {
  Fields& f = job->f;
  SpecBuilder& b = job->builder;
  const int64_t hidden = f.Whole("hidden_size", std::nullopt);
  const int64_t inner = f.Whole("intermediate_size", std::nullopt);
  const int64_t vocab = f.Whole("vocab_size", std::nullopt);
  const int64_t bias = f.Flag("attention_bias", true) ? 1 : 0;
  const int64_t layers = job->Layers("num_hidden_layers");
  b.Unit("embed_in");
  b.Tensor("weight", {vocab, hidden});
  for (int64_t i = 0; i < layers; ++i) {
    b.Unit(fmt::format("layers.{}", i));
    b.Tensor("norms", {4, hidden});
    b.Linear("attention.query_key_value", hidden, 3 * hidden, bias);
    b.Linear("attention.dense", hidden, hidden, bias);
    b.Linear("mlp.dense_h_to_4h", hidden, inner);
    b.Linear("mlp.dense_4h_to_h", inner, hidden);
  }
  b.Unit("final_layer_norm");
  b.Tensor("weight", {2, hidden});
  job->LmHead(hidden, vocab, f.Flag("tie_word_embeddings", false));
}

void AddOpt(Job* job) {
  Fields& f = job->f;
  SpecBuilder& b = job->builder;
  const int64_t hidden = f.Whole("hidden_size", std::nullopt);
  const int64_t inner = f.Whole("ffn_dim", std::nullopt);
  const int64_t vocab = f.Whole("vocab_size", std::nullopt);
  const int64_t words = f.Whole("word_embed_proj_dim", hidden);
  const int64_t bias = f.Flag("enable_bias", true) ? 1 : 0;
  const int64_t norm = f.Flag("layer_norm_elementwise_affine", true) ? 2 : 0;
  const bool last_norm =
      f.Flag("do_layer_norm_before", true) && !f.Flag("_remove_final_layer_norm", false);
  const int64_t layers = job->Layers("num_hidden_layers");
  b.Unit("embeddings");
  b.Tensor("embed_tokens.weight", {vocab, words});
  b.Tensor("embed_positions.weight",
           {f.Whole("max_position_embeddings", std::nullopt) + 2, hidden});
  if (words != hidden) {
    b.Tensor("project_in.weight", {words, hidden});
    b.Tensor("project_out.weight", {hidden, words});
  }
  for (int64_t i = 0; i < layers; ++i) {
    b.Unit(fmt::format("layers.{}", i));
    b.Tensor("norms", {2, norm, hidden});
    for (const char* name : {"q_proj", "k_proj", "v_proj", "out_proj"})
      b.Linear(fmt::format("self_attn.{}", name), hidden, hidden, bias);
    b.Linear("fc1", hidden, inner, bias);
    b.Linear("fc2", inner, hidden, bias);
  }
  if (last_norm && norm > 0) {
    b.Unit("final_layer_norm");
    b.Tensor("weight", {norm, hidden});
  }
  job->LmHead(words, vocab, f.Flag("tie_word_embeddings", true));
}

// ---- Encoders like BERT

void AddBert(int64_t types_default, Job* job) {
  Fields& f = job->f;
  SpecBuilder& b = job->builder;
  const int64_t hidden = f.Whole("hidden_size", std::nullopt);
  const int64_t inner = f.Whole("intermediate_size", std::nullopt);
  const int64_t vocab = f.Whole("vocab_size", std::nullopt);
  const int64_t layers = job->Layers("num_hidden_layers");
  const bool masked = job->Is("ForMaskedLM") || job->Is("LMHeadModel") || job->Is("ForCausalLM");
  const bool pretraining = job->Is("ForPreTraining");
  b.Unit("embeddings");
  b.Tensor("word_embeddings.weight", {vocab, hidden});
  b.Tensor("position_embeddings.weight",
           {f.Whole("max_position_embeddings", std::nullopt), hidden});
  b.Tensor("token_type_embeddings.weight", {f.Whole("type_vocab_size", types_default), hidden});
  b.Tensor("norm", {2, hidden});
  for (int64_t i = 0; i < layers; ++i) {
    b.Unit(fmt::format("layer.{}", i));
    for (const char* name : {"query", "key", "value", "output"})
      b.Linear(fmt::format("attention.{}", name), hidden, hidden);
    b.Linear("intermediate", hidden, inner);
    b.Linear("output", inner, hidden);
    b.Tensor("norms", {4, hidden});
  }
  if (!masked) {
    b.Unit("pooler");
    b.Linear("dense", hidden, hidden);
  }
  if (masked || pretraining) {
    b.Unit("predictions");
    b.Linear("dense", hidden, hidden);
    b.Tensor("norm", {2, hidden});
    b.Tensor("bias", {vocab});
    if (!f.Flag("tie_word_embeddings", true)) b.Linear("decoder", hidden, vocab);
    if (pretraining) b.Linear("seq_relationship", hidden, 2);
  } else if (!job->Is("Model") && !job->architecture.empty()) {
    job->not_counted = job->architecture;
  }
}

// ---- Encoder and decoder like T5

void AddT5Stack(const char* stack, int64_t layers, bool decoder, bool bias_everywhere, Job* job) {
  Fields& f = job->f;
  SpecBuilder& b = job->builder;
  const int64_t hidden = f.Whole("d_model", std::nullopt);
  const int64_t inner = f.Whole("d_ff", std::nullopt);
  const int64_t heads = f.Whole("num_heads", std::nullopt);
  const int64_t width = Times(heads, f.Whole("d_kv", std::nullopt));
  const bool gated = f.Word("feed_forward_proj", "relu").starts_with("gated-");
  for (int64_t i = 0; i < layers; ++i) {
    b.Unit(fmt::format("{}.block.{}", stack, i));
    for (int64_t attention = 0; attention < (decoder ? 2 : 1); ++attention) {
      b.Tensor(fmt::format("attention{}.qkv", attention), {3, hidden, width});
      b.Tensor(fmt::format("attention{}.o", attention), {width, hidden});
      b.Tensor(fmt::format("attention{}.norm", attention), {hidden});
    }
    if (i == 0 || bias_everywhere) {
      b.Tensor("relative_attention_bias", {f.Whole("relative_attention_num_buckets", 32), heads});
    }
    b.Tensor("wi", {gated ? 2 : 1, hidden, inner});
    b.Tensor("wo", {inner, hidden});
    b.Tensor("norm", {hidden});
  }
  b.Unit(fmt::format("{}.final_layer_norm", stack));
  b.Tensor("weight", {hidden});
}

void AddT5(bool bias_everywhere, bool tied, Job* job) {
  const int64_t hidden = job->f.Whole("d_model", std::nullopt);
  const int64_t vocab = job->f.Whole("vocab_size", std::nullopt);
  const int64_t layers = job->Layers("num_layers");
  const int64_t decoder_layers =
      job->f.Has("num_decoder_layers") ? job->Layers("num_decoder_layers") : layers;
  job->builder.Unit("shared");
  job->builder.Tensor("weight", {vocab, hidden});
  AddT5Stack("encoder", layers, /*decoder=*/false, bias_everywhere, job);
  if (job->Is("EncoderModel")) return;
  AddT5Stack("decoder", decoder_layers, /*decoder=*/true, bias_everywhere, job);
  job->LmHead(hidden, vocab, job->f.Flag("tie_word_embeddings", tied));
}

// ---- By name

struct Family {
  const char* name;  // model_type
  void (*add)(const Json& config, Job* job);
};

constexpr LlamaStyle kLlama = {.bias_by_config = true};
constexpr LlamaStyle kMistral = {};
constexpr LlamaStyle kMixtral = {.expert_size = "intermediate_size"};
constexpr LlamaStyle kQwen2 = {.qkv_bias = true};
constexpr LlamaStyle kQwen2Moe = {
    .qkv_bias = true, .expert_size = "moe_intermediate_size", .shared_expert = true};
constexpr LlamaStyle kQwen3 = {.bias_by_config = true, .qk_norm = true, .head_dim = 128};
constexpr LlamaStyle kQwen3Moe = {
    .bias_by_config = true, .qk_norm = true, .expert_size = "moe_intermediate_size"};
constexpr LlamaStyle kGemma = {.bias_by_config = true, .tied = true, .head_dim = 256};
constexpr LlamaStyle kGemma2 = {.bias_by_config = true, .norms = 4, .tied = true, .head_dim = 256};

constexpr Family kFamilies[] = {
    {"bert", [](const Json&, Job* job) { AddBert(2, job); }},
    {"gemma", [](const Json& c, Job* job) { AddLlamaLike(kGemma, c, job); }},
    {"gemma2", [](const Json& c, Job* job) { AddLlamaLike(kGemma2, c, job); }},
    {"gpt2", [](const Json&, Job* job) { AddGpt2(job); }},
    {"gpt_neox", [](const Json&, Job* job) { AddGptNeoX(job); }},
    {"llama", [](const Json& c, Job* job) { AddLlamaLike(kLlama, c, job); }},
    {"mistral", [](const Json& c, Job* job) { AddLlamaLike(kMistral, c, job); }},
    {"mixtral", [](const Json& c, Job* job) { AddLlamaLike(kMixtral, c, job); }},
    {"mt5", [](const Json&, Job* job) { AddT5(false, false, job); }},
    {"opt", [](const Json&, Job* job) { AddOpt(job); }},
    {"qwen2", [](const Json& c, Job* job) { AddLlamaLike(kQwen2, c, job); }},
    {"qwen2_moe", [](const Json& c, Job* job) { AddLlamaLike(kQwen2Moe, c, job); }},
    {"qwen3", [](const Json& c, Job* job) { AddLlamaLike(kQwen3, c, job); }},
    {"qwen3_moe", [](const Json& c, Job* job) { AddLlamaLike(kQwen3Moe, c, job); }},
    {"roberta", [](const Json&, Job* job) { AddBert(2, job); }},
    {"t5", [](const Json&, Job* job) { AddT5(false, true, job); }},
    {"umt5", [](const Json&, Job* job) { AddT5(true, false, job); }},
};

const Family* FamilyOf(const std::string& name) {
  for (const Family& family : kFamilies) {
    if (name == family.name) return &family;
  }
  return nullptr;
}

std::string Known() {
  std::string names;
  for (const Family& family : kFamilies)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", family.name);
  return names;
}

}  // namespace

std::string TypeOfHfConfig(const Json& config) {
  for (const char* key : {"dtype", "torch_dtype"}) {
    const auto found = config.find(key);
    if (found == config.end()) continue;
    if (*found == "bfloat16") return "bf16";
    if (*found == "float16") return "fp16";
    if (*found == "float32") return "fp32";
  }
  return "";
}

absl::StatusOr<HfModel> ModelOfHfConfig(const Json& config, const std::string& source) {
  Job job{.f = Fields(config, source), .builder = {}, .architecture = {}, .not_counted = {}};
  const std::string type = job.f.Word("model_type", "");
  SLUICE_RETURN_IF_ERROR(job.f.status());
  if (type.empty()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: model_type: is missing; give Transformers' config.json", source));
  }
  const Json& architectures = config.value("architectures", Json::array());
  if (architectures.is_array() && !architectures.empty() && architectures[0].is_string())
    job.architecture = architectures[0].get<std::string>();
  const Family* family = FamilyOf(type);
  if (family == nullptr) {
    return absl::InvalidArgumentError(fmt::format(
        "{}: model_type: '{}' is not known here; known are {}; for any other model give --params, "
        "or --layers and --hidden",
        source, type, Known()));
  }
  if (job.f.Flag("add_cross_attention", false))
    job.f.Refuse("add_cross_attention", "attention across models can't be planned");
  family->add(config, &job);
  SLUICE_RETURN_IF_ERROR(job.f.status());
  if (job.builder.too_large()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: at most 16T parameters can be planned", source));
  }
  std::string description = type;
  if (!job.architecture.empty()) description += ", " + job.architecture;
  if (!job.not_counted.empty()) description += ", whose own head is not counted";
  return HfModel{.spec = job.builder.Take(), .description = std::move(description)};
}

}  // namespace sluice::tools

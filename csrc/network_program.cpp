#include "csrc/network_program.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <list>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

namespace fastdw {
namespace {

constexpr size_t kMostSteps = 4096;
constexpr size_t kCachedPrograms = 64;

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0;;) {
    const size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

int64_t parse_int(const std::string& where, std::string_view key, std::string_view text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  FASTDW_CHECK(error == std::errc() && stopped == end && value >= 0, where, ": ", key,
               ": expected a number, got \"", text, "\"");
  return value;
}

// The key=value tokens of one line; every key is taken once and none may be left.
class Fields {
 public:
  Fields(std::string where, const std::vector<std::string_view>& tokens)
      : where_(std::move(where)) {
    for (size_t i = 1; i < tokens.size(); ++i) {
      const size_t equals = tokens[i].find('=');
      FASTDW_CHECK(equals != std::string_view::npos, where_, ": expected key=value, got \"",
                   tokens[i], "\"");
      const std::string_view key = tokens[i].substr(0, equals);
      FASTDW_CHECK(fields_.emplace(key, tokens[i].substr(equals + 1)).second, where_, ": ", key,
                   " stands twice");
    }
  }

  const std::string& where() const { return where_; }

  bool has(std::string_view key) const { return fields_.count(key) > 0; }

  std::string_view text(std::string_view key) {
    const auto field = fields_.find(key);
    FASTDW_CHECK(field != fields_.end(), where_, ": ", key, "= is missing");
    const std::string_view value = field->second;
    fields_.erase(field);
    return value;
  }

  int64_t number(std::string_view key, int64_t lowest) {
    const int64_t value = parse_int(where_, key, text(key));
    FASTDW_CHECK(value >= lowest && value <= std::numeric_limits<int32_t>::max(), where_, ": ", key,
                 ": expected at least ", lowest, ", got ", value);
    return value;
  }

  IntList numbers(std::string_view key, size_t count, int64_t lowest) {
    const std::string_view list = text(key);
    IntList values;
    for (const std::string_view part : split(list, ','))
      values.push_back(parse_int(where_, key, part));
    const bool in_range = std::all_of(values.begin(), values.end(), [&](int64_t value) {
      return value >= lowest && value <= std::numeric_limits<int32_t>::max();
    });
    FASTDW_CHECK(values.size() == count && in_range, where_, ": ", key, ": expected ", count,
                 " numbers of at least ", lowest, ", got \"", list, "\"");
    return values;
  }

  Activation activation(const char* key) {
    return parse_activation((where_ + ": " + key).c_str(), std::string(text(key)));
  }

  Activation linear_activation(const char* key) {
    return parse_linear_activation((where_ + ": " + key).c_str(), std::string(text(key)));
  }

  bool flag(std::string_view key) {
    const std::string_view value = text(key);
    FASTDW_CHECK(value == "0" || value == "1", where_, ": ", key, ": expected 0 or 1, got \"",
                 value, "\"");
    return value == "1";
  }

  void finish() const {
    if (!fields_.empty()) fail(where_, ": unknown key ", fields_.begin()->first);
  }

 private:
  std::string where_;
  std::map<std::string_view, std::string_view> fields_;
};

class ProgramParser {
 public:
  explicit ProgramParser(const std::string& text) : lines_(split(text, '\n')) {
    if (lines_.back().empty()) lines_.pop_back();
  }

  Program parse() {
    FASTDW_CHECK(!lines_.empty() && lines_.front().substr(0, 15) == "fastdw-program ",
                 "program: expected a first line \"fastdw-program ...\"");
    FASTDW_CHECK(lines_.size() <= kMostSteps, "program: more than ", kMostSteps, " steps");
    Fields header("program: line 1", split(lines_.front(), ' '));
    FASTDW_CHECK(header.text("version") == "1", "program: line 1: expected version=1");
    add_value("x", header.number("channels", 1), false);
    const std::vector<std::string_view> outputs = split(header.text("outputs"), ',');
    if (header.has("target")) program_.target = header.text("target");
    header.finish();
    for (size_t line = 1; line < lines_.size(); ++line) add_step(line + 1);
    program_.lines = static_cast<int64_t>(lines_.size()) - 1;
    for (const std::string_view name : outputs) {
      const int value = find_value("program: line 1: outputs", name);
      FASTDW_CHECK(value != kNetworkInput, "program: line 1: outputs: x is the input");
      FASTDW_CHECK(std::count(outputs.begin(), outputs.end(), name) == 1,
                   "program: line 1: outputs: ", name, " stands twice");
      program_.outputs.push_back(value);
    }
    return std::move(program_);
  }

 private:
  int add_value(std::string_view name, int64_t channels, bool is_vector) {
    const int index = static_cast<int>(program_.values.size());
    program_.values.push_back({channels, is_vector});
    if (!name.empty()) ids_.emplace(name, index);
    return index;
  }

  int find_value(const std::string& where, std::string_view name) const {
    const auto id = ids_.find(name);
    FASTDW_CHECK(id != ids_.end(), where, ": no step before computes the value \"", name, "\"");
    return id->second;
  }

  void add_step(size_t line_number) {
    const std::vector<std::string_view> tokens = split(lines_[line_number - 1], ' ');
    const std::string name(tokens.front());
    Fields fields("program: line " + std::to_string(line_number) + ": " + name, tokens);
    ProgramStep step;
    step.where = fields.where();
    step.text_step = static_cast<int64_t>(line_number) - 2;
    const std::vector<std::string_view> inputs = split(fields.text("in"), ',');
    for (const std::string_view input : inputs)
      step.parts.push_back(find_value(step.where + ": in", input));
    step.input = step.parts.front();
    FASTDW_CHECK(inputs.size() == 1 || name == "concat", step.where, ": in: expected one value");
    const std::string_view out = fields.text("out");
    FASTDW_CHECK(!out.empty() && ids_.count(out) == 0, step.where, ": out=", out,
                 ": expected a value that does not exist yet");
    if (name == "global_pool" || name == "max_pool" || name == "resize" || name == "concat") {
      step.shape.channels_in = step.shape.channels_out = fields.number("channels", 1);
      read_weightless(name, fields, step);
    } else {
      step.shape.channels_in = fields.number("channels_in", 1);
      step.shape.channels_out = fields.number("channels_out", 1);
      step.weights_offset = parse_int(step.where, "weights", fields.text("weights"));
      FASTDW_CHECK(step.weights_offset % kBlobAlignment == 0, step.where,
                   ": weights: expected a multiple of ", kBlobAlignment, ", got ",
                   step.weights_offset);
      read_weighted(name, fields, step);
    }
    fields.finish();
    check_input(step);
    FASTDW_CHECK(program_.target == "cpu" || !is_for_cpu_alone(step), step.where,
                 ": only the CPU runs this step");
    store(std::move(step), out);
  }

  void read_weightless(const std::string& name, Fields& fields, ProgramStep& step) {
    if (name == "global_pool") {
      step.kind = StepKind::global_pool;
    } else if (name == "resize") {
      step.kind = StepKind::resize;
      const std::string_view like = fields.text("like");
      if (like != "-") step.like = find_value(step.where + ": like", like);
      step.stride = fields.numbers("scale", 2, 1);
      step.resize_mode = resize_mode(step.where, fields.text("mode"));
    } else if (name == "max_pool") {
      step.kind = StepKind::max_pool;
      read_window(fields, step, true);
    } else {
      step.kind = StepKind::concat;
      if (fields.has("groups")) step.groups = fields.number("groups", 1);
      if (fields.has("first")) step.first_channel = fields.number("first", 0);
      check_parts(step);
    }
  }

  static ResizeMode resize_mode(const std::string& where, std::string_view name) {
    if (name == "nearest") return ResizeMode::nearest;
    if (name == "bilinear") return ResizeMode::bilinear;
    FASTDW_CHECK(name == "bilinear_aligned", where, ": mode: expected nearest, bilinear or ",
                 "bilinear_aligned, got \"", name, "\"");
    return ResizeMode::bilinear_aligned;
  }

  void check_parts(const ProgramStep& step) const {
    int64_t channels = 0;
    for (const int part : step.parts) {
      const ProgramValue& value = program_.values[part];
      FASTDW_CHECK(part != kNetworkInput && !value.is_vector, step.where,
                   ": in: expected feature maps");
      channels += value.channels;
    }
    FASTDW_CHECK(channels % step.groups == 0, step.where, ": groups: expected a divisor of ",
                 channels, ", got ", step.groups);
    FASTDW_CHECK(step.first_channel + step.shape.channels_out <= channels, step.where,
                 ": channels: expected at most ", channels - step.first_channel, " from ",
                 step.first_channel, ", got ", step.shape.channels_out);
  }

  void read_weighted(const std::string& name, Fields& fields, ProgramStep& step) {
    if (name == "stem_conv") {
      step.kind = StepKind::stem_conv;
      step.blob_kind = BlobKind::stem_conv;
      read_window(fields, step, false);
      step.activation = fields.activation("activation");
    } else if (name == "depthwise_conv") {
      step.kind = StepKind::depthwise_conv;
      step.blob_kind = BlobKind::depthwise_conv;
      FASTDW_CHECK(step.shape.channels_out % step.shape.channels_in == 0, step.where,
                   ": channels_out: expected a multiple of ", step.shape.channels_in, ", got ",
                   step.shape.channels_out);
      read_window(fields, step, true);
      step.activation = fields.activation("activation");
    } else if (name == "pointwise_conv") {
      step.kind = StepKind::pointwise_conv;
      step.blob_kind = BlobKind::pointwise_conv;
      const std::string_view residual = fields.text("residual");
      if (residual != "-") step.residual = find_value(step.where + ": residual", residual);
      if (fields.has("gate")) step.gate = find_value(step.where + ": gate", fields.text("gate"));
      step.activation = fields.activation("activation");
    } else if (name == "biased_pointwise_conv") {
      step.kind = StepKind::pointwise_conv;
      step.blob_kind = BlobKind::pointwise_conv;
      step.bias = find_value(step.where + ": bias", fields.text("bias"));
      step.activation = fields.activation("activation");
    } else if (name == "dense_conv") {
      step.kind = StepKind::dense_conv;
      step.blob_kind = BlobKind::pointwise_conv;
      read_window(fields, step, true);
      step.activation = fields.activation("activation");
    } else if (name == "separable_block") {
      step.kind = StepKind::block;
      step.blob_kind = BlobKind::separable_block;
      step.shape.channels_hidden = step.shape.channels_in;
      read_window(fields, step, true);
      step.depthwise_activation = fields.activation("depthwise_activation");
      step.activation = fields.activation("pointwise_activation");
    } else if (name == "inverted_residual") {
      step.kind = StepKind::block;
      step.blob_kind = BlobKind::inverted_residual;
      step.shape.channels_hidden = fields.number("channels_hidden", 1);
      step.shape.has_expand = fields.flag("expand");
      FASTDW_CHECK(step.shape.has_expand || step.shape.channels_hidden == step.shape.channels_in,
                   step.where, ": channels_hidden: expected ", step.shape.channels_in,
                   " without expansion, got ", step.shape.channels_hidden);
      step.adds_input = fields.flag("residual");
      read_window(fields, step, true);
      step.expand_activation = fields.activation("expand_activation");
      step.depthwise_activation = fields.activation("depthwise_activation");
      step.activation = fields.activation("project_activation");
    } else if (name == "classifier_head") {
      step.kind = StepKind::linear;
      step.blob_kind = BlobKind::classifier_head;
      if (fields.has("activation")) step.activation = fields.linear_activation("activation");
    } else {
      fail(step.where, ": unknown step");
    }
  }

  static void read_window(Fields& fields, ProgramStep& step, bool has_dilation) {
    const IntList kernel = fields.numbers("kernel", 2, 1);
    step.shape.kernel_h = kernel[0];
    step.shape.kernel_w = kernel[1];
    step.stride = fields.numbers("stride", 2, 1);
    if (has_dilation) step.dilation = fields.numbers("dilation", 2, 1);
    const std::string_view padding = fields.text("padding");
    step.padding.clear();
    if (padding == "same") return;
    for (const std::string_view side : split(padding, ','))
      step.padding.push_back(parse_int(step.where, "padding", side));
    FASTDW_CHECK(step.padding.size() == 4, step.where,
                 ": padding: expected same or 4 numbers, got \"", padding, "\"");
  }

  void check_input(const ProgramStep& step) const {
    const ProgramValue& input = program_.values[step.input];
    FASTDW_CHECK(step.kind == StepKind::concat || input.channels == step.shape.channels_in,
                 step.where, ": in: expected a value of ", step.shape.channels_in,
                 " channels, got ", input.channels);
    const bool takes_vector = step.kind == StepKind::linear || step.kind == StepKind::resize;
    FASTDW_CHECK(!input.is_vector || takes_vector, step.where,
                 ": in: expected images, got [batch, channels]");
    if (step.gate != kNoValue) {
      const ProgramValue& gate = program_.values[step.gate];
      FASTDW_CHECK(gate.channels == step.shape.channels_in && gate.is_vector, step.where,
                   ": gate: expected [batch, ", step.shape.channels_in, "]");
    }
    FASTDW_CHECK(step.like == kNoValue || !program_.values[step.like].is_vector, step.where,
                 ": like: expected images, got [batch, channels]");
    FASTDW_CHECK(step.kind != StepKind::stem_conv || !is_concat(step.input), step.where,
                 ": in: a stem reads no concatenation");
    if (step.bias != kNoValue) {
      const ProgramValue& bias = program_.values[step.bias];
      FASTDW_CHECK(bias.channels == step.shape.channels_out && bias.is_vector, step.where,
                   ": bias: expected [batch, ", step.shape.channels_out, "]");
    }
    if (step.residual == kNoValue) return;
    const ProgramValue& residual = program_.values[step.residual];
    FASTDW_CHECK(residual.channels == step.shape.channels_out && !residual.is_vector, step.where,
                 ": residual: expected images of ", step.shape.channels_out, " channels");
  }

  bool is_concat(int value) const {
    return std::any_of(program_.steps.begin(), program_.steps.end(), [&](const ProgramStep& step) {
      return step.kind == StepKind::concat && step.output == value;
    });
  }

  void store(ProgramStep step, std::string_view out) {
    const bool is_head = step.kind == StepKind::linear;
    if (is_head && !program_.values[step.input].is_vector) {
      ProgramStep pool;
      pool.kind = StepKind::global_pool;
      pool.where = step.where;
      pool.text_step = step.text_step;
      pool.input = step.input;
      pool.shape.channels_in = pool.shape.channels_out = step.shape.channels_in;
      step.input = pool.output = add_value({}, step.shape.channels_in, true);
      program_.steps.push_back(std::move(pool));
    }
    step.output =
        add_value(out, step.shape.channels_out, is_head || step.kind == StepKind::global_pool);
    if (step.kind == StepKind::depthwise_conv) step.shape.channels_in = 0;  // as in the blob
    program_.steps.push_back(std::move(step));
  }

  std::vector<std::string_view> lines_;
  std::map<std::string_view, int> ids_;
  Program program_;
};

}  // namespace

bool is_for_cpu_alone(const ProgramStep& step) {
  switch (step.kind) {
    case StepKind::dense_conv:
    case StepKind::resize:
    case StepKind::max_pool:
    case StepKind::concat: return true;
    case StepKind::linear: return step.activation != Activation::none;
    default: return step.gate != kNoValue || step.bias != kNoValue;
  }
}

Program parse_program(const std::string& text) { return ProgramParser(text).parse(); }

std::shared_ptr<const Program> find_program(const std::string& text) {
  using Entry = std::pair<std::string, std::shared_ptr<const Program>>;
  static std::mutex mutex;
  static std::list<Entry> programs;  // the latest used first
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = std::find_if(programs.begin(), programs.end(),
                                  [&](const Entry& entry) { return entry.first == text; });
  if (found != programs.end()) {
    programs.splice(programs.begin(), programs, found);
    return programs.front().second;
  }
  programs.emplace_front(text, std::make_shared<const Program>(parse_program(text)));
  if (programs.size() > kCachedPrograms) programs.pop_back();
  return programs.front().second;
}

}  // namespace fastdw

#include "csrc/cpu/network_call.h"

#include <numeric>

#include "csrc/cpu/worker_team.h"
#include "csrc/new_tensor.h"
#include "csrc/parallel_units.h"
#include "csrc/params_from_tensors.h"

namespace fastdw {
namespace {

ReusableBuffer<int64_t{64} << 20>& thread_arena() {
  thread_local ReusableBuffer<int64_t{64} << 20> buffer;
  return buffer;
}

void set_weights(StemParams& params, const BlobWeights& weights) {
  params.weights = weights.pointwise;
}
void set_weights(DepthwiseParams& params, const BlobWeights& weights) {
  params.weights = weights.depthwise;
}
void set_weights(PointwiseParams& params, const BlobWeights& weights) {
  params.weights = weights.pointwise;
}
void set_weights(DenseConvParams& params, const BlobWeights& weights) {
  params.weights = weights.pointwise;
}
void set_weights(InvertedResidualParams& params, const BlobWeights& weights) {
  params.expand = weights.expand;
  params.depthwise = weights.depthwise;
  params.project = weights.pointwise;
}
void set_weights(GlobalPoolParams&, const BlobWeights&) {}
void set_weights(ResizeParams&, const BlobWeights&) {}
void set_weights(CopyChannelsParams&, const BlobWeights&) {}
void set_weights(MaxPoolParams&, const BlobWeights&) {}
void set_weights(LinearParams& params, const BlobWeights& weights) {
  params.weights = weights.pointwise;
}

template <class Params>
void set_weights(Params& params, const BlobWeights& own, const BlobWeights&) {
  set_weights(params, own);
}
void set_weights(InvertedResidualParams& params, const BlobWeights& own, const BlobWeights& stem) {
  set_weights(params, own);
  if (!params.has_project) params.expand = stem.pointwise;
}
void set_weights(StemBlockParams& params, const BlobWeights& own, const BlobWeights& stem) {
  set_weights(params.stem, stem);
  set_weights(params.block, own);
}

void set_input(StemBlockParams& params, const float* x) { params.stem.x = x; }
template <class Params>
void set_input(Params& params, const float* x) {
  params.x = x;
}

void set_partial_sums(InvertedResidualParams& params, float* sums) { params.partial_sums = sums; }
template <class Params>
void set_partial_sums(Params&, float*) {}

void set_row_sums(DepthwiseParams& params, float* sums) { params.row_sums = sums; }
void set_row_sums(InvertedResidualParams& params, float* sums) { params.row_sums = sums; }
void set_row_sums(StemBlockParams& params, float* sums) { params.block.row_sums = sums; }
template <class Params>
void set_row_sums(Params&, float*) {}

void set_output(StemBlockParams& params, float* y) { params.block.y = y; }
template <class Params>
void set_output(Params& params, float* y) {
  params.y = y;
}

}  // namespace

void NetworkClock::read(const NetworkSchedule& schedule, const NetworkPlan& plan,
                        double* seconds) const {
  const int64_t image_steps = plan.image_steps.size(), batch_steps = plan.batch_steps.size();
  std::fill(seconds, seconds + image_steps + batch_steps, 0.0);
  int64_t round = 0;
  if (schedule.whole_images > 0) {
    std::vector<double> busy(image_steps, 0.0);
    for (const std::vector<double>& worker : worker_seconds_)
      for (int64_t step = 0; step < image_steps; ++step) busy[step] += worker[step];
    const double all = std::accumulate(busy.begin(), busy.end(), 0.0);
    const double took = rounds_.seconds(round++);
    for (int64_t step = 0; step < image_steps && all > 0; ++step)
      seconds[step] += took * busy[step] / all;
  }
  if (schedule.rest_images > 0)
    for (const PlanRound& done : plan.image_rounds) seconds[done.step] += rounds_.seconds(round++);
  for (int64_t step = image_steps; step < image_steps + batch_steps; ++step)
    seconds[step] += rounds_.seconds(round++);
}

NetworkCall::NetworkCall(const NetworkPlan& plan, const Tensor& x, const Tensor& packed)
    : plan_(plan),
      table_(kernel_table()),
      x_(x),
      packed_(packed),
      is_channels_last_(!plan.reads_planes || !x.is_contiguous()),
      schedule_(schedule_of(plan, table_, x.size(0), is_channels_last_,
                            torch::stable::get_num_threads())) {
  image_weights_ = find_weights(plan.image_steps);
  batch_weights_ = find_weights(plan.batch_steps);
  for (const int index : plan.outputs) outputs_.push_back(empty_output(plan.values[index]));
}

std::vector<Tensor> NetworkCall::run(NetworkClock* clock) {
  if (schedule_.empty()) return std::move(outputs_);
  const int64_t workers = schedule_.workers;
  const auto memory = thread_arena().take(schedule_.arena_floats + schedule_.batch_floats);
  arena_ = memory.data();
  batch_values_ = arena_ + schedule_.arena_floats;
  const ImageGroup rest{schedule_.whole_images * workers, schedule_.rest_images, arena_};

  const int64_t whole_rounds = schedule_.whole_images > 0;
  const int64_t rest_rounds = rest.count > 0 ? plan_.image_rounds.size() : 0;
  const int64_t rounds = whole_rounds + rest_rounds + plan_.batch_steps.size();
  const auto enter = [&] { return thread_scratch().take(schedule_.scratch_floats); };
  const auto do_item = [&](int64_t round, int64_t worker, const auto& scratch) {
    const int64_t next = round - whole_rounds;
    if (round < whole_rounds)
      run_whole_images(worker, scratch.data());
    else if (next < rest_rounds)
      run_image_round(plan_.image_rounds[next], rest, worker, workers, scratch.data());
    else
      run_batch_step(next - rest_rounds, worker, workers, scratch.data());
    if (clock != nullptr) clock->round_done(round, worker);
  };
  clock_ = clock;
  if (clock != nullptr) clock->start(workers, rounds, plan_.image_steps.size());
  if (workers == 1) {  // no parallel region: a forked child may have no pool
    const auto scratch = enter();
    for (int64_t round = 0; round < rounds; ++round) do_item(round, 0, scratch);
  } else {
    WorkerTeam(workers).run(rounds, enter, do_item);
  }
  return std::move(outputs_);
}

std::vector<NetworkCall::StepWeights> NetworkCall::find_weights(
    const std::vector<PlanStep>& steps) const {
  std::vector<StepWeights> found(steps.size());
  for (size_t index = 0; index < steps.size(); ++index) {
    const PlanStep& step = steps[index];
    if (!has_weights(step.params)) continue;
    found[index].own = weights_at(step.blob);
    if (step.has_stem_blob()) found[index].stem = weights_at(step.stem_blob);
  }
  return found;
}

BlobWeights NetworkCall::weights_at(const PlanBlob& blob) const {
  const auto* bytes = static_cast<const uint8_t*>(packed_.const_data_ptr());
  const int64_t size = packed_.numel();
  FASTDW_CHECK(blob.offset <= size, "packed: expected at least ", blob.offset, " bytes, got ", size,
               ": truncated");
  return read_blob(blob.kind, blob.shape, bytes + blob.offset, size - blob.offset);
}

Tensor NetworkCall::empty_output(const PlanValue& value) const {
  const int64_t batch = schedule_.batch;
  if (value.is_vector) return new_tensor({batch, value.channels}, ScalarType::Float);
  return new_tensor({batch, value.channels, value.height, value.width}, ScalarType::Float, true);
}

float* NetworkCall::address(int index, const ImageGroup& group) const {
  const PlanValue& value = plan_.values[index];
  if (value.whole != kNoValue) return address(value.whole, group) + value.first_of_whole;
  switch (value.place) {
    case PlanValue::Place::arena: return group.arena + value.offset * group.count;
    case PlanValue::Place::batch:
      return batch_values_ + value.offset * schedule_.batch + value.floats * group.first;
    case PlanValue::Place::output: break;
    case PlanValue::Place::input: break;
  }
  const bool is_input = value.place == PlanValue::Place::input;
  void* base = is_input ? const_cast<void*>(x_.const_data_ptr())
                        : outputs_[value.output_index].mutable_data_ptr();
  return static_cast<float*>(base) + value.floats * group.first;
}

void NetworkCall::run_part(const PlanStep& step, const StepWeights& weights,
                           const ImageGroup& group, int64_t part, int64_t parts,
                           float* scratch) const {
  with_kernel(table_, step, group.count, is_channels_last_, [&](const auto& kernel, auto& params) {
    set_weights(params, weights.own, weights.stem);
    set_input(params, address(step.input, group));
    set_output(params, address(step.output, group));
    if (step.partial_sums != kNoValue)
      set_partial_sums(params, address(step.partial_sums, group));
    if (step.row_sums != kNoValue) set_row_sums(params, address(step.row_sums, group));
    if constexpr (std::is_same_v<std::decay_t<decltype(params)>, PointwiseParams>) {
      params.residual = step.residual == kNoValue ? nullptr : address(step.residual, group);
      params.gate = step.gate == kNoValue ? nullptr : address(step.gate, group);
      if (step.bias != kNoValue) params.weights.bias = address(step.bias, group);
    }
    const UnitRange range = units_of_part(params.units(), part, parts);
    if (range.begin < range.end) kernel.run(params, range.begin, range.end, scratch);
  });
}

void NetworkCall::sum_part(const PlanStep& step, const ImageGroup& group, int64_t part,
                           int64_t parts) const {
  HiddenShareSumParams params{std::get<InvertedResidualParams>(step.params)};
  params.block.batch = group.count;
  params.block.x = address(step.input, group);
  params.block.y = address(step.output, group);
  params.block.partial_sums = address(step.partial_sums, group);
  const UnitRange range = units_of_part(params.units(), part, parts);
  if (range.begin < range.end) table_.hidden_share_sum.run(params, range.begin, range.end, nullptr);
}

void NetworkCall::run_whole_images(int64_t worker, float* scratch) const {
  const int64_t first = worker * schedule_.whole_images;
  float* arena = arena_ + worker * plan_.arena_floats;
  double before = clock_ != nullptr ? seconds_now() : 0.0;
  for (int64_t image = first; image < first + schedule_.whole_images; ++image)
    for (const PlanRound& round : plan_.image_rounds) {
      run_image_round(round, {image, 1, arena}, 0, 1, scratch);
      if (clock_ == nullptr) continue;
      const double now = seconds_now();
      clock_->image_step_done(worker, round.step, now - before);
      before = now;
    }
}

void NetworkCall::run_image_round(const PlanRound& round, const ImageGroup& group, int64_t part,
                                  int64_t parts, float* scratch) const {
  const PlanStep& step = plan_.image_steps[round.step];
  if (round.sums_shares && parts == 1) return;  // who had all shares has added them
  if (round.sums_shares)
    sum_part(step, group, part, parts);
  else
    run_part(step, image_weights_[round.step], group, part, parts, scratch);
}

void NetworkCall::run_batch_step(int64_t step, int64_t part, int64_t parts, float* scratch) const {
  const ImageGroup all{0, schedule_.batch, nullptr};
  run_part(plan_.batch_steps[step], batch_weights_[step], all, part, parts, scratch);
}

}  // namespace fastdw

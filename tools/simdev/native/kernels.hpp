// Operators: the device check that CUDA makes, the order check, then the CPU's own kernel on aliases.
//
// torch's stock fallback copies arguments to the CPU without looking where they are, and so hides the very mistake
// that these devices exist to find: a tensor that was never brought over.
#pragma once

#include "aliases.hpp"

namespace simdev {

struct OperatorCounts {
  bool on = false;
  int64_t kernels = 0;
  std::map<std::string, uint64_t> by_name;
};
inline OperatorCounts& operator_counts() { return immortal<OperatorCounts>(); }

// Apply `change` to every tensor of an argument, in a list or alone.
template <class Change>
void change_tensors(IValue& v, Change change) {
  if (v.isTensor()) {
    v = change(v.toTensor());
  } else if (v.isTensorList()) {
    c10::List<Tensor> changed;
    for (const Tensor& t : v.toTensorList()) changed.push_back(change(t));
    v = changed;
  } else if (v.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> changed;
    for (const std::optional<Tensor>& t : v.toOptionalTensorList())
      changed.push_back(t ? std::optional<Tensor>(change(*t)) : t);
    v = changed;
  }
}

template <class Visit>
void visit_tensors(const IValue& v, Visit visit) {
  if (v.isTensor()) {
    if (v.toTensor().defined()) visit(v.toTensor());
  } else if (v.isTensorList()) {
    for (const Tensor& t : v.toTensorList()) visit(t);
  } else if (v.isOptionalTensorList()) {
    for (const std::optional<Tensor>& t : v.toOptionalTensorList())
      if (t && t->defined()) visit(*t);
  }
}

inline bool is_simulated(const IValue& v) { return v.isDevice() && v.toDevice().type() == kDeviceType; }
inline bool is_written(const c10::Argument& a) { return a.alias_info() && a.alias_info()->isWrite(); }

// Find the one device of an operator. CUDA lets two kinds of CPU tensor take part: one without dimensions, which is
// read as a number, and one that indexes; everything else must be on one device.
inline int check_devices(const c10::FunctionSchema& schema, c10::ArrayRef<IValue> arguments) {
  int device = -1;
  std::string first;
  for (size_t i = 0; i < arguments.size() && device < 0; i++) {
    visit_tensors(arguments[i], [&](const Tensor& t) {
      if (device >= 0 || !t.is_privateuseone()) return;
      device = t.device().index();
      first = schema.arguments()[i].name();
    });
  }
  for (size_t i = 0; i < arguments.size() && device >= 0; i++) {
    const auto& argument = schema.arguments()[i];
    visit_tensors(arguments[i], [&](const Tensor& t) {
      const bool number = t.is_cpu() && t.dim() == 0;
      const bool index = t.is_cpu() && argument.name() == "indices";
      TORCH_CHECK(number || index || t.device() == torch_device(device),
                  "Expected all tensors to be on the same device, but found at least two devices, ",
                  torch_device(device), " (", first, ") and ", t.device(), " (", argument.name(),
                  ")! (when checking arguments of ", schema.name(), ")");
    });
  }
  for (const IValue& v : arguments)  // a factory has no tensor, only the device it is asked for
    if (device < 0 && is_simulated(v) && v.toDevice().has_index()) device = v.toDevice().index();
  return device < 0 ? current_device : device;
}

// Must the host know values before it can go on? Then CUDA synchronises: for a number, for a shape that depends on
// values, for an index made of yes and no.
inline bool needs_values(const c10::OperatorHandle& op, c10::ArrayRef<IValue> arguments) {
  if (op.hasTag(at::Tag::data_dependent_output)) return true;
  bool indexed = false, masked = false;
  for (const IValue& v : arguments) {
    if (!v.isOptionalTensorList()) continue;
    indexed = true;
    visit_tensors(v, [&](const Tensor& t) { masked |= t.scalar_type() == at::kBool || t.scalar_type() == at::kByte; });
  }
  return indexed ? masked : op.hasTag(at::Tag::dynamic_output_shape);
}

// A view is made by the host from shapes alone; nothing reads the bytes, which may just be on their way.
inline bool returns_views(const c10::FunctionSchema& schema) {
  if (schema.returns().empty()) return false;
  for (const auto& r : schema.returns())
    if (!r.alias_info() || r.alias_info()->isWrite()) return false;
  return true;
}

// The boxed kernel of every operator that has none of its own.
inline void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Lock lock;
  const auto& schema = op.schema();
  const size_t first_argument = stack->size() - schema.arguments().size();
  const auto arguments = c10::ArrayRef<IValue>(*stack).slice(first_argument);
  const int device = check_devices(schema, arguments);
  const bool wait = needs_values(op, arguments);
  const bool dry = settings().dry && !wait;
  const bool view = returns_views(schema);

  Stream& on = current_stream(device);
  const Operation operation{on, view ? 0 : issue(on), intern(schema.name())};
  operator_counts().kernels += !view;
  if (operator_counts().on && !view) operator_counts().by_name[schema.name()]++;

  Aliases aliases(dry);
  std::vector<std::pair<Tensor, Tensor>> written;
  for (size_t i = 0; i < schema.arguments().size(); i++) {
    IValue& v = (*stack)[first_argument + i];
    const auto& argument = schema.arguments()[i];
    change_tensors(v, [&](const Tensor& t) {
      Tensor alias = aliases.to_host(t);
      if (!t.defined() || !t.is_privateuseone()) return alias;
      if (!view) touch(t, operation, is_written(argument));
      if (is_written(argument)) written.emplace_back(alias, t);
      return alias;
    });
    if (is_simulated(v)) {
      v = Device(dry ? c10::kMeta : c10::kCPU);
    } else if (v.isGenerator() || (v.isNone() && argument.name() == "generator")) {
      const at::Generator g = v.isNone() ? default_generator(device) : v.toGenerator();
      TORCH_CHECK(g.device().type() == kDeviceType, "Expected a '", torch_device(device), "' generator but found '",
                  g.device(), "'");
      v = dry ? IValue() : IValue(cpu_generator(g));
    }
  }

  if (!view) drain(on);
  op.callBoxed(stack);

  for (auto& [alias, original] : written) Aliases::follow(alias, original);
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++)
    change_tensors((*stack)[i], [&](const Tensor& t) { return aliases.to_device(t, device, operation); });
  if (wait) {
    // Before it indexes by yes and no, torch has called nonzero, and that was counted.
    table().host_syncs += schema.name() != "aten::index";
    synchronize(on);
  }
}

// torch asks a backend that is not built in for a convolution of its own.
inline Tensor convolution(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                          c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                          bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
  const auto numbers = [](c10::SymIntArrayRef symbols) { return C10_AS_INTARRAYREF_SLOW(symbols).vec(); };
  torch::jit::Stack stack;
  torch::jit::push(stack, input, weight, bias, numbers(stride), numbers(padding), numbers(dilation), transposed,
                   numbers(output_padding), groups.guard_int(__FILE__, __LINE__));
  run_on_host(op, &stack);
  return stack.back().toTensor();
}

// Attention by the kernel that the CPU would choose, for results that are equal to the last bit.
inline int64_t choose_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                const std::optional<Tensor>& mask, double dropout, bool causal,
                                std::optional<double> scale, bool grouped) {
  Aliases aliases(false);
  const auto host_mask = mask ? std::optional<Tensor>(aliases.to_host(*mask)) : std::nullopt;
  return at::_fused_sdp_choice(aliases.to_host(query), aliases.to_host(key), aliases.to_host(value), host_mask, dropout,
                               causal, scale, grouped);
}

}  // namespace simdev

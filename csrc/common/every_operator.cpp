// The implementation of common/every_operator.h.
#include "common/every_operator.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/TensorOptions.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace grf {
namespace {

using c10::DispatchKey;
using c10::DispatchKeySet;
using torch::jit::Stack;

// A tensor argument of a call, or an element of an argument that is a list of tensors. `tensor` points into the stack.
struct TensorArgument {
  const at::Tensor* tensor;
  const c10::Argument* argument;

  bool is_written() const { return argument->alias_info() != nullptr && argument->alias_info()->isWrite(); }
};

using TensorArguments = c10::SmallVector<TensorArgument, 32>;

TensorArguments tensor_arguments(const c10::FunctionSchema& schema, const Stack& stack) {
  TensorArguments found;
  const auto add = [&](const c10::IValue& value, const c10::Argument& argument) {
    if (value.isTensor() && value.toTensor().defined()) found.push_back({&value.toTensor(), &argument});
  };
  const auto values = torch::jit::last(stack, schema.arguments().size());
  for (size_t i = 0; i < values.size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    if (values[i].isList()) {
      for (const c10::IValue& value : values[i].toListRef()) add(value, argument);
    } else {
      add(values[i], argument);
    }
  }
  return found;
}

// The memory of a tensor: blocks of `block` bytes, `stride` bytes apart, from `begin` to begin + span. `stride` is the
// largest stride of a dimension; a block is what the other dimensions span.
struct MemoryLayout {
  const char* begin;
  int64_t span, stride, block;
  bool overlaps_itself;

  explicit MemoryLayout(const at::Tensor& tensor)
      : begin(static_cast<const char*>(tensor.const_data_ptr())),
        span(static_cast<int64_t>(tensor.element_size())),
        stride(0),
        block(span),
        overlaps_itself(false) {
    const int64_t element_bytes = span;
    c10::SmallVector<std::pair<int64_t, int64_t>, 4> dimensions;  // stride in bytes, size
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      if (tensor.size(d) > 1) dimensions.emplace_back(tensor.stride(d) * element_bytes, tensor.size(d));
    }
    std::sort(dimensions.begin(), dimensions.end());
    for (const auto& [dimension_stride, size] : dimensions) {
      overlaps_itself |= dimension_stride < span;
      stride = dimension_stride, block = span;
      span += (size - 1) * dimension_stride;
    }
  }

  bool may_overlap(const MemoryLayout& other) const {
    if (begin + span <= other.begin || other.begin + other.span <= begin) return false;
    if (stride != other.stride || stride == 0) return true;
    // The blocks of one tensor may lie between those of the other, as with two columns of one matrix.
    const int64_t distance = ((other.begin - begin) % stride + stride) % stride;
    return distance < block || distance + other.block > stride;
  }
};

void check_memory(const std::string& op, const TensorArguments& arguments) {
  struct NamedLayout {
    const TensorArgument* argument;
    MemoryLayout layout;
  };
  c10::SmallVector<NamedLayout, 32> layouts;
  for (const TensorArgument& argument : arguments) {
    if (argument.tensor->numel() > 0 && !argument.tensor->is_meta()) {
      layouts.push_back({&argument, MemoryLayout(*argument.tensor)});
    }
  }
  for (const auto& [written, layout] : layouts) {
    if (!written->is_written()) continue;
    TORCH_CHECK_VALUE(!layout.overlaps_itself, op, ": ", written->argument->name(),
                      " is updated, but several of its elements share memory (strides ", written->tensor->strides(),
                      "); pass a clone");
    for (const auto& [other, other_layout] : layouts) {
      TORCH_CHECK_VALUE(other == written || !layout.may_overlap(other_layout), op, ": ", written->argument->name(),
                        " is updated, but ", other->argument->name(), " shares memory with it; pass a clone");
    }
  }
}

std::optional<c10::Device> device_argument(const c10::FunctionSchema& schema, const Stack& stack) {
  for (const c10::IValue& value : torch::jit::last(stack, schema.arguments().size())) {
    if (value.isDevice()) return value.toDevice();
  }
  return std::nullopt;
}

void check_arguments(const c10::OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const TensorArguments arguments = tensor_arguments(schema, *stack);
  for (const auto& [tensor, argument] : arguments) {
    const auto& [first, first_argument] = arguments[0];
    TORCH_CHECK_VALUE(tensor->device() == first->device(), schema.name(), ": ", argument->name(), " is on ",
                      tensor->device(), ", but ", first_argument->name(), " is on ", first->device(),
                      "; all tensors must be on one device");
  }
  if (schema.is_mutable()) check_memory(schema.name(), arguments);
  keys = keys & DispatchKeySet(DispatchKeySet::FULL_AFTER, DispatchKey::BackendSelect);
  if (const auto device = device_argument(schema, *stack)) {
    TORCH_CHECK_VALUE(arguments.empty() || arguments[0].tensor->device().type() == device->type(), schema.name(), ": ",
                      arguments.empty() ? "" : arguments[0].argument->name(), " is not on ", *device);
    keys = keys | DispatchKeySet(c10::computeDispatchKey(std::nullopt, at::kStrided, *device));
  }
  op.redispatchBoxed(keys, stack);
}

void increment_versions(const c10::OperatorHandle& op, DispatchKeySet keys, Stack* stack) {
  c10::SmallVector<at::Tensor, 16> written;
  for (const TensorArgument& argument : tensor_arguments(op.schema(), *stack)) {
    if (argument.is_written()) written.push_back(*argument.tensor);
  }
  for (const at::Tensor& tensor : written) {
    // For an inference tensor outside of inference mode, bump_version raises torch's error, here before the update.
    if (tensor.is_inference() && !c10::InferenceMode::is_enabled()) tensor.unsafeGetTensorImpl()->bump_version();
  }
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  }
  for (const at::Tensor& tensor : written) tensor.unsafeGetTensorImpl()->bump_version();
}

// Calls visit(name, schema) for all operators of the library.
template <typename Visit>
void for_operators(const Visit& visit) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (name.getNamespace() != GRF_LIBRARY_NAME) continue;
    visit(name.name.substr(name.name.find("::") + 2), dispatcher.findSchemaOrThrow(name.name.c_str(), "").schema());
  }
}

}  // namespace

void register_checks(torch::Library& m) {
  for_operators([&](const std::string& name, const c10::FunctionSchema&) {
    m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&check_arguments>());
  });
}

void register_version_counters(torch::Library& m) {
  for_operators([&](const std::string& name, const c10::FunctionSchema& schema) {
    if (schema.is_mutable()) m.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&increment_versions>());
  });
}

}  // namespace grf

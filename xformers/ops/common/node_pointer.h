// Pointers to nodes of the graph of gradients: torch counts owners by std::shared_ptr up to 2.12, in the node later.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/version.h>

#include <memory>
#include <utility>

namespace xformers::ops {

#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 13
template <class Node>
using NodePointer = c10::intrusive_ptr<Node>;

template <class Node, class... Arguments>
NodePointer<Node> make_node(Arguments&&... arguments) {
  return c10::make_intrusive<Node>(std::forward<Arguments>(arguments)...);
}
#else
template <class Node>
using NodePointer = std::shared_ptr<Node>;

// deleteNode: long chains of nodes are taken apart without recursion.
template <class Node, class... Arguments>
NodePointer<Node> make_node(Arguments&&... arguments) {
  return NodePointer<Node>(new Node(std::forward<Arguments>(arguments)...), torch::autograd::deleteNode);
}
#endif

using AnyNode = NodePointer<torch::autograd::Node>;

}  // namespace xformers::ops

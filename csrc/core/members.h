// The members of the family of norms that have a name. Host code.
//
// A line of the table is all that a norm of the family needs: its name is then understood, told and listed in Python
// and C++.
#pragma once

#include <charconv>
#include <cmath>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include "core/norm.h"

namespace dendnorm {

struct Member {
  std::string_view name;
  Norm norm;
  bool variable;         // one e for each output neuron
  bool ordered = false;  // the order p is the caller's: "name:P"
};

// Of two names for one member the first is the one that it is told by.
inline constexpr Member kMembers[] = {
    {"none", {0, 0, 2}, false},
    {"l0", {1, 0, 2}, false},
    {"l0-variable", {1, 0, 2}, true},
    {"lp", {0, 1, 2}, false, true},
    {"lp-variable", {0, 1, 2}, true, true},
    {"weight_norm", {0, 1, 2}, true},
    {"joint", {1, 1, 2}, true},
};

// A number as printf's %g has it, whatever the locale.
inline std::string short_number(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value, std::chars_format::general, 6).ptr};
}

// The name of a member, or its exponents where it has none. `scales`: whether there is an excitability.
inline std::string name_of_member(const Norm& norm, bool variable, bool scales) {
  for (const Member& member : kMembers) {
    const Norm& own = member.norm;
    const bool unscaled = own.a == 0 && own.b == 0 && !member.variable;
    if (own.a != norm.a || own.b != norm.b || member.variable != variable || unscaled == scales) continue;
    if (member.ordered) return std::string(member.name) + ":" + short_number(norm.p);
    if (own.b == 0 || own.p == norm.p) return std::string(member.name);
  }
  return "Norm(a=" + short_number(norm.a) + ", b=" + short_number(norm.b) + ", p=" + short_number(norm.p) +
         (variable ? ", variable=True)" : ")");
}

// "none", "l0", ... or "joint", in quotes.
inline std::string names_of_members() {
  std::string text;
  for (const Member& member : kMembers) {
    if (!text.empty()) text += &member + 1 == std::end(kMembers) ? " or " : ", ";
    text += '"' + std::string(member.name) + (member.ordered ? ":P\"" : "\"");
  }
  return text;
}

// What a name stands for, with its order. Throws std::invalid_argument that says what a name is.
inline Member member_named(std::string_view name) {
  const std::size_t colon = name.find(':');
  const bool ordered = colon != std::string_view::npos;
  for (Member member : kMembers) {
    if (member.name != name.substr(0, colon) || member.ordered != ordered) continue;
    if (!ordered) return member;
    std::string_view order = name.substr(colon + 1);
    const auto space = [](char letter) { return letter == ' ' || (letter >= '\t' && letter <= '\r'); };
    while (!order.empty() && space(order.front())) order.remove_prefix(1);
    while (!order.empty() && space(order.back())) order.remove_suffix(1);
    if (order.starts_with('+') && !order.starts_with("+-")) order.remove_prefix(1);
    const auto [stopped, error] = std::from_chars(order.data(), order.data() + order.size(), member.norm.p);
    if (error == std::errc() && stopped == order.data() + order.size()) return member;
    throw std::invalid_argument("p in norm must be a number of at least 1, got '" + std::string(name) + "'");
  }
  throw std::invalid_argument("norm must be " + names_of_members() + ", got '" + std::string(name) + "'");
}

}  // namespace dendnorm

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/members.h"
#include "core/shares.h"

namespace dendnorm {
namespace {

std::string error_of(const auto& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Members, EveryNameIsToldAgain) {
  for (const Member& member : kMembers) {
    const std::string name = std::string(member.name) + (member.ordered ? ":2.5" : "");
    const Member found = member_named(name);
    EXPECT_EQ(found.norm.a, member.norm.a);
    EXPECT_EQ(found.norm.b, member.norm.b);
    EXPECT_EQ(found.norm.p, member.ordered ? 2.5 : member.norm.p);
    EXPECT_EQ(found.variable, member.variable);
    const bool scales = name != "none";
    const std::string told = name_of_member(found.norm, found.variable, scales);
    const Member again = member_named(told);  // by the first of two names, as "weight_norm" is
    EXPECT_TRUE(again.norm.a == found.norm.a && again.norm.b == found.norm.b && again.variable == found.variable);
    EXPECT_TRUE(again.norm.p == found.norm.p || found.norm.b == 0) << told;
    EXPECT_NE(names_of_members().find('"' + std::string(member.name)), std::string::npos);
  }
  EXPECT_TRUE(names_of_members().starts_with("\"none\", \"l0\", "));
  EXPECT_NE(names_of_members().find("\"lp:P\", "), std::string::npos);
  EXPECT_NE(names_of_members().find("\" or \""), std::string::npos);  // before the last
}

TEST(Members, WhatHasNoNameTellsItsExponents) {
  EXPECT_EQ(name_of_member({0.5, -1, 3}, true, true), "Norm(a=0.5, b=-1, p=3, variable=True)");
  EXPECT_EQ(name_of_member({0, 0, 2}, false, true), "Norm(a=0, b=0, p=2)");  // s alone
  EXPECT_EQ(name_of_member({0, 0, 7}, false, false), "none");
  EXPECT_EQ(name_of_member({1, 0, 7}, false, true), "l0");  // p plays no part
  EXPECT_EQ(name_of_member({1, 1, 3}, true, true), "Norm(a=1, b=1, p=3, variable=True)");
  EXPECT_EQ(name_of_member({0, 1, 1e-7}, false, true), "lp:1e-07");
  EXPECT_EQ(name_of_member({0, 1, 123456789}, false, true), "lp:1.23457e+08");
}

TEST(Members, OrdersAreNumbersAsPythonReadsThem) {
  for (const char* name : {"lp:3", "lp: 3", "lp:3 ", "lp:+3", "lp:3.0", "lp:0.3e1"}) {
    EXPECT_EQ(member_named(name).norm.p, 3) << name;
  }
  EXPECT_EQ(member_named("lp:inf").norm.p, std::numeric_limits<double>::infinity());  // refused by who takes it
  EXPECT_EQ(member_named("lp:-1").norm.p, -1);
  for (const char* name : {"lp:", "lp:two", "lp:2x", "lp:+-2", "lp-variable: "}) {
    EXPECT_EQ(error_of([&] { member_named(name); }),
              std::string("p in norm must be a number of at least 1, got '") + name + "'");
  }
  for (const char* name : {"", "lp", "lp-variable", "l0:2", "L0", "joint ", "l2"}) {
    EXPECT_EQ(error_of([&] { member_named(name); }), "norm must be " + names_of_members() + ", got '" + name + "'");
  }
}

TEST(Shares, AreRoundedHalfToEven) {
  EXPECT_EQ(share_of(0.5, 5), 2);
  EXPECT_EQ(share_of(0.5, 7), 4);
  EXPECT_EQ(share_of(0, 7), 0);
  EXPECT_EQ(share_of(1, std::int64_t{1} << 52), std::int64_t{1} << 52);
}

TEST(Shares, ConnectionsAreCountedOrRefused) {
  EXPECT_EQ(connections(0.25, {}, 10), 2);
  EXPECT_EQ(connections({}, 10, 10), 10);
  EXPECT_EQ(connections({}, 0, 10), 0);
  EXPECT_EQ(error_of([] { connections({}, {}, 10); }), "exactly one of density and nnz must be given, got neither");
  EXPECT_EQ(error_of([] { connections(0.1, 3, 10); }),
            "exactly one of density and nnz must be given, got density=0.1 and nnz=3");
  EXPECT_EQ(error_of([] { connections(1.5, {}, 10); }), "density must be in (0, 1], got 1.5");
  EXPECT_EQ(error_of([] { connections(0.0, {}, 10); }), "density must be in (0, 1], got 0");
  EXPECT_EQ(error_of([] { connections(std::nan(""), {}, 10); }), "density must be in (0, 1], got nan");
  EXPECT_EQ(error_of([] { connections({}, 11, 10); }),
            "nnz must be in [0, in_features * out_features] = [0, 10], got 11");
  EXPECT_EQ(error_of([] { connections({}, -1, 10); }),
            "nnz must be in [0, in_features * out_features] = [0, 10], got -1");
  EXPECT_EQ(error_of([] { connections(1.0, {}, std::int64_t{1} << 31); }), "nnz must be below 2^31, got 2147483648");
}

}  // namespace
}  // namespace dendnorm

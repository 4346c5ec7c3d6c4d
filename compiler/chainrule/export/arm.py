"""What 32-bit ARM has no instructions for: divisions, and floats of integers of 64 bits.

Code that needs them calls the functions that the Run-time ABI for the Arm Architecture names
(section 4); here they are, so that nothing besides the kernel is needed. Sizes are what is divided.
"""

from __future__ import annotations

import re

_TEXT = """
define internal arm_aapcscc { i32, i32 } @__aeabi_uidivmod(i32 %over, i32 %under) #0 {
entry:
  br label %head
head:
  %i = phi i32 [32, %entry], [%next, %body]
  %left_over = phi i32 [%over, %entry], [%moved, %body]
  %rest = phi i32 [0, %entry], [%left, %body]
  %whole = phi i32 [0, %entry], [%more, %body]
  %going = icmp ne i32 %i, 0
  br i1 %going, label %body, label %done
body:
  %next = sub i32 %i, 1
  %moved = shl i32 %left_over, 1
  %bit = lshr i32 %left_over, 31
  %twice = shl i32 %rest, 1
  %now = or i32 %twice, %bit
  %top = icmp slt i32 %rest, 0
  %reaches = icmp uge i32 %now, %under
  %takes = or i1 %top, %reaches
  %less = sub i32 %now, %under
  %left = select i1 %takes, i32 %less, i32 %now
  %doubled = shl i32 %whole, 1
  %unit = zext i1 %takes to i32
  %more = or i32 %doubled, %unit
  br label %head
done:
  %one = insertvalue { i32, i32 } poison, i32 %whole, 0
  %both = insertvalue { i32, i32 } %one, i32 %rest, 1
  ret { i32, i32 } %both
}

define internal arm_aapcscc i32 @__aeabi_uidiv(i32 %over, i32 %under) #0 {
entry:
  %both = call arm_aapcscc { i32, i32 } @__aeabi_uidivmod(i32 %over, i32 %under)
  %whole = extractvalue { i32, i32 } %both, 0
  ret i32 %whole
}

define internal arm_aapcscc { i32, i32 } @__aeabi_idivmod(i32 %over, i32 %under) #0 {
entry:
  %over_low = icmp slt i32 %over, 0
  %under_low = icmp slt i32 %under, 0
  %over_minus = sub i32 0, %over
  %under_minus = sub i32 0, %under
  %a = select i1 %over_low, i32 %over_minus, i32 %over
  %b = select i1 %under_low, i32 %under_minus, i32 %under
  %both = call arm_aapcscc { i32, i32 } @__aeabi_uidivmod(i32 %a, i32 %b)
  %whole = extractvalue { i32, i32 } %both, 0
  %rest = extractvalue { i32, i32 } %both, 1
  %differ = xor i1 %over_low, %under_low
  %whole_minus = sub i32 0, %whole
  %rest_minus = sub i32 0, %rest
  %quotient = select i1 %differ, i32 %whole_minus, i32 %whole
  %remainder = select i1 %over_low, i32 %rest_minus, i32 %rest
  %one = insertvalue { i32, i32 } poison, i32 %quotient, 0
  %result = insertvalue { i32, i32 } %one, i32 %remainder, 1
  ret { i32, i32 } %result
}

define internal arm_aapcscc i32 @__aeabi_idiv(i32 %over, i32 %under) #0 {
entry:
  %both = call arm_aapcscc { i32, i32 } @__aeabi_idivmod(i32 %over, i32 %under)
  %whole = extractvalue { i32, i32 } %both, 0
  ret i32 %whole
}

define internal arm_aapcscc { i64, i64 } @__aeabi_uldivmod(i64 %over, i64 %under) #0 {
entry:
  br label %head
head:
  %i = phi i32 [64, %entry], [%next, %body]
  %left_over = phi i64 [%over, %entry], [%moved, %body]
  %rest = phi i64 [0, %entry], [%left, %body]
  %whole = phi i64 [0, %entry], [%more, %body]
  %going = icmp ne i32 %i, 0
  br i1 %going, label %body, label %done
body:
  %next = sub i32 %i, 1
  %moved = shl i64 %left_over, 1
  %bit = lshr i64 %left_over, 63
  %twice = shl i64 %rest, 1
  %now = or i64 %twice, %bit
  %top = lshr i64 %rest, 63
  %over64 = icmp ne i64 %top, 0
  %reaches = icmp uge i64 %now, %under
  %takes = or i1 %over64, %reaches
  %less = sub i64 %now, %under
  %left = select i1 %takes, i64 %less, i64 %now
  %doubled = shl i64 %whole, 1
  %unit = zext i1 %takes to i64
  %more = or i64 %doubled, %unit
  br label %head
done:
  %one = insertvalue { i64, i64 } poison, i64 %whole, 0
  %both = insertvalue { i64, i64 } %one, i64 %rest, 1
  ret { i64, i64 } %both
}

define internal arm_aapcscc { i64, i64 } @__aeabi_ldivmod(i64 %over, i64 %under) #0 {
entry:
  %over_low = icmp slt i64 %over, 0
  %under_low = icmp slt i64 %under, 0
  %over_minus = sub i64 0, %over
  %under_minus = sub i64 0, %under
  %a = select i1 %over_low, i64 %over_minus, i64 %over
  %b = select i1 %under_low, i64 %under_minus, i64 %under
  %both = call arm_aapcscc { i64, i64 } @__aeabi_uldivmod(i64 %a, i64 %b)
  %whole = extractvalue { i64, i64 } %both, 0
  %rest = extractvalue { i64, i64 } %both, 1
  %differ = xor i1 %over_low, %under_low
  %whole_minus = sub i64 0, %whole
  %rest_minus = sub i64 0, %rest
  %quotient = select i1 %differ, i64 %whole_minus, i64 %whole
  %remainder = select i1 %over_low, i64 %rest_minus, i64 %rest
  %one = insertvalue { i64, i64 } poison, i64 %quotient, 0
  %result = insertvalue { i64, i64 } %one, i64 %remainder, 1
  ret { i64, i64 } %result
}

define internal arm_aapcscc float @__aeabi_ul2f(i64 %x) #0 {
entry:
  %none = icmp eq i64 %x, 0
  br i1 %none, label %zero, label %top
zero:
  ret float 0.0
top:
  %full = phi i64 [%x, %entry], [%twice, %shift]
  %scale = phi i64 [189, %entry], [%less, %shift]
  %there = icmp slt i64 %full, 0
  br i1 %there, label %round, label %shift
shift:
  %twice = shl i64 %full, 1
  %less = sub i64 %scale, 1
  br label %top
round:
  %high = lshr i64 %full, 40
  %low = and i64 %full, 1099511627775
  %above = icmp ugt i64 %low, 549755813888
  %half = icmp eq i64 %low, 549755813888
  %odd = trunc i64 %high to i1
  %tie = and i1 %half, %odd
  %up = or i1 %above, %tie
  %unit = zext i1 %up to i64
  %rounded = add i64 %high, %unit
  %exponent = shl i64 %scale, 23
  %bits = add i64 %exponent, %rounded
  %word = trunc i64 %bits to i32
  %number = bitcast i32 %word to float
  ret float %number
}

define internal arm_aapcscc float @__aeabi_l2f(i64 %x) #0 {
entry:
  %low = icmp slt i64 %x, 0
  %minus = sub i64 0, %x
  %size = select i1 %low, i64 %minus, i64 %x
  %number = call arm_aapcscc float @__aeabi_ul2f(i64 %size)
  %negative = fneg float %number
  %result = select i1 %low, float %negative, float %number
  ret float %result
}
"""

#: the functions by name; they may call those above them
DIVISIONS = {
    text[text.index("@") + 1 : text.index("(")]: text.strip()
    for text in re.split(r"\n(?=define)", _TEXT.strip())
}

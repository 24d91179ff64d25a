"""What an experiment takes on hardware that is not here: memory, FLOPs, traffic, time and money, and the best layout.

shape: a model's sizes. layout: meshes, rematerialisation, micro-batches. analytic: memory and work in closed form.
topology, compiler: the real step, compiled for absent devices. hlo, costs: what its text says. roofline: seconds.
fit, published, calibration: what steps reach of nominal rates, by published runs and by `lm bench`.
search: layouts ranked by formula. planner: a plan, as values. text: a plan, as text.
"""

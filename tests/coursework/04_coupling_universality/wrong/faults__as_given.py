# loses: all
moments, improvement, fit_coupling, apply_coupling = moments_broken, improvement_broken, fit_broken, couple_broken
